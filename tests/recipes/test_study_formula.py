import csv
import json
import math
import operator
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.recipes.study_file import load_study
from tenfold.recipes.study_formula import Formula, Operand

OPERANDS = [
    Operand("constant", "val/loss"),
    Operand("constant", "merged/val/loss_1-sqrt"),
    Operand("w4a4_1-sqrt", "val/loss"),
    Operand("a+b", "train/x.y"),
]
OPERATORS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
NUMBERS = st.sampled_from(["0", "1", "2.5", "1e-3", "3E+2", "100"])


@st.composite
def expressions(draw: st.DrawFn, depth: int = 4) -> str:
    """Text with any nesting, as many parentheses as one likes, and spaces where they may stand."""
    kind = draw(st.integers(0, 3)) if depth else 0
    if kind == 0:
        operand = draw(st.sampled_from(OPERANDS))
        return f"{operand.variant}:{operand.metric}"
    if kind == 1:
        return draw(NUMBERS)
    space = draw(st.sampled_from(["", " "]))
    if kind == 2:
        return f"({space}{draw(expressions(depth - 1))}{space})"
    sign = draw(st.sampled_from(sorted(OPERATORS)))
    return f"{draw(expressions(depth - 1))} {sign} {draw(expressions(depth - 1))}"


@settings(max_examples=300, deadline=None)
@given(
    expressions(),
    st.lists(st.floats(-1e6, 1e6), min_size=len(OPERANDS), max_size=len(OPERANDS)),
)
def test_a_formula_is_what_python_makes_of_it(text: str, values: list[float]) -> None:
    """Bit for bit: the same operations in the same order of precedence."""
    numbers = dict(zip(OPERANDS, values, strict=True))
    python, named = text, [o for o in OPERANDS if f"{o.variant}:{o.metric}" in text]
    for operand in named:
        value = repr(numbers[operand])
        python = python.replace(f"{operand.variant}:{operand.metric}", f"({value})")
    if not named:
        with pytest.raises(ValueError, match="names no VARIANT:METRIC"):
            Formula.parse(text)
        return
    formula = Formula.parse(text)
    assert set(formula.operands) == set(named)
    try:
        expected = float(eval(python))
    except ZeroDivisionError:
        expected = math.nan
    found = formula.evaluate(numbers)
    assert found == expected or (math.isnan(found) and math.isnan(expected))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a:x", "values"),
        ("(a:x)", "values"),
        ("a:x - b:x", "differences"),
        ("(a:x - b:x) / 2", "differences"),
        ("3.2 - a:x", "differences"),
        ("2 * a:x", "differences"),
        ("a:x / b:x", "ratios"),
        ("1 - (a:x - b:x) / (c:x - b:x)", "ratios"),
        ("100 * a:x / b:x", "ratios"),
        ("a:x * a:y / b:x", "differences"),
    ],
)
def test_values_differences_and_ratios_are_told_apart(text: str, kind: str) -> None:
    formula = Formula.parse(text)
    assert formula.kind == kind
    assert formula.is_operand == (kind == "values")


ITEM = r"VARIANT:METRIC, a number or \("
ERRORS = {
    "": f"ends where {ITEM} should follow",
    "a:x -": "ends where",
    "(a:x": r"a \( is not closed",
    "a:x - (b:x - (c:x)": r"a \( is not closed",
    "a:x)": r"a \) closes no \(",
    "()": r"found '\)' where",
    "a:x b:x": r"expected one of \+ - \* / before 'b:x'",
    "(a:x b:x)": r"expected \) or one of \+ - \* / before 'b:x'",
    "a:x (b:x)": r"expected one of .* before '\('",
    "a:x-b:x": "found 'a:x-b:x' where .* with spaces around",
    "a:x +- b:x": "before '\\+-'",
    "a:x ** b:x": "before '\\*\\*'",
    "a:x // b:x": "before '//'",
    "- a:x": "found '-' where",
    "2*a:x": r"found '2\*a:x' where",
    "loss": "found 'loss' where",
    "a:x - 1_0": "found '1_0' where",
    "a:x - inf": "found 'inf' where",
    "__import__('os'):x": "found '__import__' where",
    "a:": "found 'a:' where",
    ":x": "found ':x' where",
    "1 + 2": "names no VARIANT:METRIC",
}


@pytest.mark.parametrize("text", ERRORS)
def test_what_is_no_formula_is_refused_with_the_place(text: str) -> None:
    with pytest.raises(ValueError, match=ERRORS[text]) as caught:
        Formula.parse(text)
    assert "\n" not in str(caught.value)


TWO_STAGES = """
stages:
  - {name: a, recipe: x, variants: {max: {}, both: {}}, grid: {seed_everything: [0]}}
  - {name: b, recipe: x, variants: {mean: {}, both: {}}}
table: """
TABLES = {
    "{rows: {}}": "table.rows: expected at least one row",
    "{rows: {x: 'max:a'}, metrics: [a]}": "table.metrics: leave it out",
    "{rows: {x: 'max:a -'}}": "table.rows: 'x': ends where VARIANT:METRIC",
    "{rows: {x: 3}}": "table.rows: 'x': names no VARIANT:METRIC",
    "{rows: {x: 'mxa:a'}}": "table.rows: no variant 'mxa': did you mean max",
    "{rows: {x: 'max:a - mean:a'}}": r"max, mean must be variants of exactly one .* a and b",
    "{rows: {x: 'both:a'}}": r"both must be variants of exactly one stage; they are of a and b",
    "{rows: {x: 'max:a'}, over: records}": "'records' is no axis of stage 'a': there are seed_",
    "{rows: {x: 'mean:a'}, over: seed_everything}": "is no axis of stage 'b': there are none",
    "{rows: {x: 'max:a'}, over: a.variant}": "rows and over are both a.variant",
    "{rows: {x: 'max:a'}, against: y}": "table.against: 'y' is no row: there are x",
    "{rows: {x: 'max:a', y: '2 * max:a'}, against: y}": "'y' is compared with zero: name a row",
    "{rows: {x: 'max:a/<row>'}}": 'needs rows: "<row>"',
    "{rows: {x: 'max:a'}, formulas: {}}": "table: unknown key 'formulas'",
    "{rows: a.variant, metrics: [a], formulas: {}}": "table: unknown key 'formulas'",
}


@pytest.mark.parametrize("table", TABLES)
def test_a_wrong_table_is_one_clear_line(tmp_path: Path, table: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(TWO_STAGES + table)
    with pytest.raises(ValueError, match=TABLES[table]) as caught:
        load_study(str(path))
    assert "\n" not in str(caught.value)


def test_the_axis_of_a_table_is_that_of_the_variants_it_names(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        TWO_STAGES + "{rows: {x: 'both:val/loss - mean:val/loss', 1: 'mean:val/loss'}, against: 1}"
    )
    table = load_study(str(path)).table
    assert table is not None
    assert (table.rows, table.metrics, table.against) == ("b.variant", ("val/loss",), "1")
    assert list(table.formulas) == ["x", "1"]


STUDY = """
stages:
  - name: train
    recipe: recipe.yaml
    set: {trainer.max_steps: 4, trainer.val_check_interval: 4}
    variants:
      still: {set: {model.init_args.optimizer.init_args.lr: 0}}
      fast: {set: {model.init_args.optimizer.init_args.lr: 0.1}}
    grid: {seed_everything: [0, 1]}
table:
  over: seed_everything
  against: start
  rows:
    start: still:val/loss
    end: fast:val/loss
    last batch: fast:train/loss
    learned: still:val/loss - fast:val/loss
    gap, of what was learned: (fast:train/loss - fast:val/loss) / (still:val/loss - fast:val/loss)
"""


@pytest.mark.slow
def test_a_study_compares_metrics_of_different_variants(
    project: Path, tenfold: Callable[..., CompletedProcess[str]]
) -> None:
    Path("claim.yaml").write_text(STUDY)
    done = tenfold("study", "--config", "claim.yaml", "--study_dir", "out", "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished in" in done.stdout
    assert "val/loss" in done.stdout  # progress shows what the formulas name

    def measured(variant: str, seed: int) -> dict[str, Any]:
        path = Path(f"out/train/{variant}-seed_everything={seed}/metrics.json")
        found: dict[str, Any] = json.loads(path.read_text())["fit"]
        return found

    learned, gaps = [], []
    for seed in (0, 1):
        still, fast = measured("still", seed), measured("fast", seed)
        learned.append(still["val/loss"] - fast["val/loss"])
        gaps.append((fast["train/loss"] - fast["val/loss"]) / learned[-1])
    assert min(map(abs, learned)) > 0
    with Path("out/table.csv").open() as file:
        rows = {row["row"]: row for row in csv.DictReader(file)}
    for name, values in {"learned": learned, "gap, of what was learned": gaps}.items():
        row, mean = rows[name], sum(values) / 2
        half = math.tan(0.475 * math.pi) * abs(values[0] - values[1]) / 2  # t with 1 is Cauchy
        assert float(row["mean"]) == float(row["difference"]) == pytest.approx(mean, rel=1e-12)
        assert float(row["low"]) == pytest.approx(mean - half, rel=1e-9)
        assert float(row["high"]) == pytest.approx(mean + half, rel=1e-9)
        assert (row["against"], row["n"], row["num_planned"]) == ("zero", "2", "2")
    end = rows["end"]
    assert (end["against"], end["metric"]) == ("start", "fast:val/loss")
    assert float(end["difference"]) == pytest.approx(-sum(learned) / 2, rel=1e-12)
    pictures = sorted(path.name for path in Path("out/figures").iterdir())
    assert pictures == ["differences.png", "ratios.png", "values.png"]

    Path("claim.yaml").write_text(STUDY.replace("fast:train/loss - ", "fast:train/los - "))
    done = tenfold("study", "--config", "claim.yaml", "--study_dir", "out", "--table-only")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: table.rows: 'gap, of what was learned': no run of 'fast' has measured "
        "'train/los': did you mean train/loss or val/loss or best_val/loss?"
    )
