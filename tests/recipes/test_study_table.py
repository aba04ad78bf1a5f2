import csv
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from scipy import stats
from tenfold.recipes.study_file import Study, load_study
from tenfold.recipes.study_plan import Run, plan_runs
from tenfold.recipes.study_report import draw_metric, report
from tenfold.recipes.study_table import Line, clustered_bootstrap, collect_lines, paired_t

ROWS_OF_VARIANTS = """
stages:
  - name: train
    recipe: train.yaml
    variants: {max: {}, mean: {}}
    grid: {seed_everything: [0, 1, 2]}
  - {name: robustness, recipe: noise.yaml, command: test, set: {ckpt_path: "${train.checkpoint}"}}
table: {rows: train.variant, over: seed_everything, against: max, metrics: [val/loss, test/er]}
"""
PREFIXES = """
stages:
  - {name: suite, recipe: train.yaml, command: test, grid: {seed_everything: [0, 1]}}
table: {rows: <row>, over: seed_everything, against: max, metrics: [test/<row>/er]}
"""
CURVES = """
stages:
  - name: train
    recipe: train.yaml
    variants: {w4a4: {}, w4a16: {}}
    grid: {model.init_args.group_size: [32, 128], seed_everything: [0, 1]}
table: {rows: model.init_args.group_size, over: seed_everything, against: 32, metrics: [val/loss]}
"""
RECORDS = """
stages:
  - name: decode
    recipe: train.yaml
    command: test
    variants: {small: {}, large: {}}
    grid: {seed_everything: [0, 1]}
table: {rows: <row>, over: records, against: greedy, metrics: [accuracy]}
"""

FORMULAS = """
stages:
  - name: train
    recipe: train.yaml
    variants: {constant: {}, linear: {}}
    grid: {trainer.max_steps: [600, 1500], seed_everything: [0, 1, 2]}
table:
  over: seed_everything
  against: newest
  rows:
    newest: constant:val/loss
    merged: constant:merged/val/loss
    error: constant:merged/val/loss - linear:val/loss
    of the drop: >
      (constant:merged/val/loss - linear:val/loss) / (constant:val/loss - linear:val/loss)
"""


class Case:
    """A study whose runs have measured what `measure(run)` says; None leaves a run unfinished."""

    def __init__(self, folder: Path, text: str, measure: Callable[[Run], Any]) -> None:
        (folder / "train.yaml").write_text("model: {class_path: Net}\n")
        (folder / "noise.yaml").write_text("data: {class_path: Noise}\n")
        (folder / "claim.yaml").write_text(text)
        self.study: Study = load_study("claim.yaml")
        self.out = folder / "out"
        self.runs = plan_runs(self.study, self.out)
        for run in self.runs:
            measured = measure(run)
            if measured is not None:
                run.run_dir.mkdir(parents=True)
                records = measured.pop("records", [])
                lines = "".join(json.dumps(record) + "\n" for record in records)
                (run.run_dir / "records.jsonl").write_text(lines)
                content = {run.stage.command: measured, "run": {}}
                (run.run_dir / "metrics.json").write_text(json.dumps(content))

    def lines(self) -> dict[tuple[str, ...], Line]:
        assert self.study.table is not None
        lines = collect_lines(self.study, self.study.table, self.runs)
        return {tuple(filter(None, (line.metric, line.group, line.row))): line for line in lines}

    def report(self) -> str:
        text = io.StringIO()
        report(self.study, self.runs, self.out, Console(width=160, file=text))
        return text.getvalue()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Case]:
    monkeypatch.chdir(tmp_path)
    return lambda text, measure: Case(tmp_path, text, measure)


def seed_of(run: Run) -> int:
    return int(run.coordinates["seed_everything"])


LOSSES = {"max": [1.0, 2.0, 4.0], "mean": [0.5, 1.75, 3.0]}


def losses(run: Run) -> dict[str, Any] | None:
    loss = LOSSES[run.coordinates["train.variant"]][seed_of(run)]
    return {"val/loss": loss} if run.stage.name == "train" else {"test/er": 10 * loss, "step": 3}


def test_paired_t_is_students() -> None:
    """In closed form: with two degrees of freedom even the quantile, 4.3027, has one."""
    differences = [-0.5, -0.25, -1.0]
    interval = paired_t(differences)
    mean, sd = -7 / 12, math.sqrt(((1 / 12) ** 2 + (4 / 12) ** 2 + (5 / 12) ** 2) / 2)
    half = 0.95 * math.sqrt(2 / (1 - 0.95**2)) * sd / math.sqrt(3)
    assert interval.low == pytest.approx(mean - half, rel=1e-12)
    assert interval.high == pytest.approx(mean + half, rel=1e-12)
    reference = stats.ttest_rel(LOSSES["mean"], LOSSES["max"])
    assert interval.p == pytest.approx(reference.pvalue, rel=1e-12)
    assert reference.confidence_interval(0.95).low == pytest.approx(interval.low, rel=1e-12)


def test_equal_differences_have_no_test_but_for_zero() -> None:
    assert (paired_t([0.1, 0.1 + 1e-17]).low, paired_t([0.1, 0.1]).p) == (0.1, None)
    assert paired_t([0.0, 0.0]).p == 1.0
    same = clustered_bootstrap([0.25] * 12, [str(i) for i in range(12)])
    assert (same.low, same.high, same.p) == (0.25, 0.25, None)


def test_bootstrap_of_single_units_agrees_with_theory() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(0.2, 1.0, 400)
    interval = clustered_bootstrap(list(x), [str(i) for i in range(400)])
    theory = stats.ttest_1samp(x, 0)
    assert interval.low == pytest.approx(theory.confidence_interval().low, abs=0.01)
    assert interval.high == pytest.approx(theory.confidence_interval().high, abs=0.01)
    assert interval.p == pytest.approx(theory.pvalue, abs=0.003)
    assert interval == clustered_bootstrap(list(x), [str(i) for i in range(400)])  # deterministic


def test_bootstrap_keeps_clusters_together() -> None:
    """Ten copies of each of 40 units say no more than the 40 units."""
    rng = np.random.default_rng(2)
    x = rng.normal(0.1, 1.0, 40)
    names = [str(i) for i in range(40)]
    single = clustered_bootstrap(list(x), names)
    copies = clustered_bootstrap(list(np.repeat(x, 10)), list(np.repeat(names, 10)))
    assert copies.low == pytest.approx(single.low)
    assert copies.high == pytest.approx(single.high)
    assert copies.p == single.p
    ignorant = clustered_bootstrap(list(np.repeat(x, 10)), [str(i) for i in range(400)])
    assert ignorant.high - ignorant.low < 0.5 * (copies.high - copies.low)
    assert copies.method == "bootstrap over 40 groups"
    assert "too few" in clustered_bootstrap([1.0, 2.0, 4.0], ["a", "b", "b"]).method


def test_uneven_clusters_weigh_by_their_size() -> None:
    """Percentiles of the ratio of sums, found here by enumerating all 3^3 draws of clusters."""
    differences, clusters = [1.0, 0.0, 0.0, 4.0], ["a", "b", "b", "c"]
    sums, sizes = {"a": 1.0, "b": 0.0, "c": 4.0}, {"a": 1, "b": 2, "c": 1}
    draws = [
        sum(sums[c] for c in draw) / sum(sizes[c] for c in draw)
        for draw in ((i, j, k) for i in "abc" for j in "abc" for k in "abc")
    ]
    interval = clustered_bootstrap(differences, clusters)
    assert min(draws) <= interval.low < interval.high <= max(draws)
    assert any(interval.high == pytest.approx(draw) for draw in draws)


def test_table_numbers(make: Callable[..., Case]) -> None:
    lines = make(ROWS_OF_VARIANTS, losses).lines()
    line = lines["val/loss", "mean"]
    assert (line.n, line.num_runs, line.num_planned) == (3, 3, 3)
    assert line.mean == pytest.approx(1.75)
    assert line.sd == pytest.approx(1.25)
    assert line.points == {"0": 0.5, "1": 1.75, "2": 3.0}
    assert line.difference is not None
    assert line.difference.points == {"0": -0.5, "1": -0.25, "2": -1.0}
    expected = stats.ttest_rel(LOSSES["mean"], LOSSES["max"]).confidence_interval(0.95)
    assert line.difference.interval.low == pytest.approx(expected.low)
    assert line.difference.interval.method == "paired t"
    assert lines["val/loss", "max"].difference is None
    assert lines["test/er", "mean"].mean == pytest.approx(17.5)  # of the stage that has it


def test_the_last_stage_with_the_metric_counts_unless_one_is_named(
    make: Callable[..., Case],
) -> None:
    text = ROWS_OF_VARIANTS.replace("test/er]", "train:val/loss]")
    value = {"train": 1.0, "robustness": 2.0}
    lines = make(text, lambda run: {"val/loss": value[run.stage.name]}).lines()
    assert lines["val/loss", "max"].mean == 2.0
    assert lines["train:val/loss", "max"].mean == 1.0


def test_missing_runs_are_counted_and_never_filled_in(make: Callable[..., Case]) -> None:
    gone = "train/mean-seed_everything=1"
    case = make(ROWS_OF_VARIANTS, lambda run: None if run.id == gone else losses(run))
    line = case.lines()["val/loss", "mean"]
    assert (line.n, line.num_planned, line.mean) == (2, 3, 1.75)
    assert line.difference is not None
    assert line.difference.points == {"0": -0.5, "2": -1.0}
    assert line.difference.mean == -0.75  # over the two pairs, not over the means
    text = case.report()
    assert "2 of 3" in text
    assert "without 1 unfinished runs" in text
    markdown = (case.out / "table.md").read_text()
    assert f"Unfinished, and nothing stands in for them: {gone}." in markdown


def test_a_row_without_any_run_is_missing(make: Callable[..., Case]) -> None:
    case = make(ROWS_OF_VARIANTS, lambda run: losses(run) if "mean" in run.id else None)
    lines = case.lines()
    assert lines["val/loss", "max"].mean is None
    assert lines["val/loss", "mean"].difference is None
    assert "missing" in case.report()


def test_one_seed_gives_no_interval_and_says_so(make: Callable[..., Case]) -> None:
    case = make(ROWS_OF_VARIANTS.replace("[0, 1, 2]", "[0]"), losses)
    line = case.lines()["val/loss", "mean"]
    assert line.sd is None
    assert line.difference is not None
    assert (line.difference.interval.low, line.difference.interval.p) == (None, None)
    assert "(n = 1: no interval)" in case.report()


def test_from_ten_seeds_on_the_interval_is_a_bootstrap(make: Callable[..., Case]) -> None:
    rng = np.random.default_rng(0)
    noise = {(row, seed): rng.normal() for row in ("max", "mean") for seed in range(12)}
    text = ROWS_OF_VARIANTS.replace("[0, 1, 2]", str(list(range(12)))).replace(", test/er", "")
    case = make(
        text, lambda run: {"val/loss": noise[run.coordinates["train.variant"], seed_of(run)]}
    )
    found = case.lines()["val/loss", "mean"].difference
    assert found is not None
    x = np.array([noise["mean", seed] - noise["max", seed] for seed in range(12)])
    expected = stats.bootstrap((x,), np.mean, rng=np.random.default_rng(3)).confidence_interval
    assert found.interval.method == "bootstrap"
    assert found.interval.low == pytest.approx(expected.low, abs=0.05)
    assert found.interval.high == pytest.approx(expected.high, abs=0.05)


def test_a_diverged_run_shows_as_nan(make: Callable[..., Case]) -> None:
    def measure(run: Run) -> dict[str, Any]:
        return {"val/loss": math.nan if run.id.endswith("mean-seed_everything=1") else 1.0}

    case = make(ROWS_OF_VARIANTS.replace(", test/er", ""), measure)
    line = case.lines()["val/loss", "mean"]
    assert line.n == 3
    assert line.difference is not None
    assert line.mean is not None
    assert math.isnan(line.mean)
    assert line.difference.interval.low is None
    assert "nan" in case.report()


def test_rows_of_a_metric_prefix(make: Callable[..., Case]) -> None:
    def measure(run: Run) -> dict[str, Any]:
        seed = seed_of(run)
        return {"test/max/er": 0.5 + seed, "test/mixer/er": 0.25 + 2 * seed, "test/mixer/acc": 9.0}

    lines = make(PREFIXES, measure).lines()
    assert list(lines) == [("test/<row>/er", "max"), ("test/<row>/er", "mixer")]
    line = lines["test/<row>/er", "mixer"]
    assert line.points == {"0": 0.25, "1": 2.25}
    assert line.difference is not None
    assert line.difference.points == {"0": -0.25, "1": 0.75}
    with pytest.raises(ValueError, match="'maxi' is no row of test/<row>/er: did you mean max"):
        make(PREFIXES.replace("against: max", "against: maxi"), lambda run: None).lines()


def test_other_axes_split_the_table_into_groups(make: Callable[..., Case]) -> None:
    def measure(run: Run) -> dict[str, Any]:
        bits = {"w4a4": 1.0, "w4a16": 0.1}[run.coordinates["train.variant"]]
        return {"val/loss": bits * run.coordinates["model.init_args.group_size"] + seed_of(run)}

    case = make(CURVES, measure)
    lines = case.lines()
    assert len(lines) == 4
    for group, factor in (("w4a4", 1.0), ("w4a16", 0.1)):
        line = lines["val/loss", group, "128"]
        assert line.mean == pytest.approx(128 * factor + 0.5)
        assert line.difference is not None
        assert line.difference.mean == pytest.approx(96 * factor)  # within the group
    case.report()
    assert imread(case.out / "figures/val_loss.png").shape[1] == 1350


def make_records(run: Run) -> dict[str, Any]:
    """Greedy is wrong on every third image, `pm` only where seed and image say so."""
    records = []
    for question in range(120):
        image, seed = question // 4, seed_of(run)
        for row in ("greedy", "pm"):
            right = image % 3 != 0 if row == "greedy" else (image + seed) % 6 != 0
            key = {"id": f"q{question}", "group": f"image{image}", "row": row}
            records.append({**key, "accuracy": float(right)})
    return {"records": records, "test/accuracy": 0.0}


def test_records_are_paired_by_id_and_resampled_by_group(make: Callable[..., Case]) -> None:
    case = make(RECORDS, make_records)
    lines = case.lines()
    line = lines["accuracy", "small", "pm"]
    assert (line.n, line.num_runs) == (240, 2)  # pooled over seeds, split by variant
    assert line.mean == pytest.approx(1 - 1 / 6)
    difference = line.difference
    assert difference is not None
    assert difference.mean == pytest.approx(1 / 3 - 1 / 6)
    assert set(difference.points) == {"0", "1"}
    assert difference.interval.method == "bootstrap over 30 groups"
    # 30 images whose difference is -1, 0 or 1 per seed: standard error by hand.
    per_image = [
        np.mean([(i + seed) % 6 != 0 for seed in (0, 1)]) - (i % 3 != 0) for i in range(30)
    ]
    error = np.std(per_image, ddof=1) / math.sqrt(30)
    assert difference.interval.low is not None
    assert difference.interval.high is not None
    width = difference.interval.high - difference.interval.low
    assert width == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert "over records" in case.report()


def test_records_of_rows_that_are_variants(make: Callable[..., Case]) -> None:
    text = RECORDS.replace("<row>", "decode.variant").replace("greedy", "small")

    def measure(run: Run) -> dict[str, Any]:
        large = run.coordinates["decode.variant"] == "large"
        numbers = [float(i % 2 == 0 or large) for i in range(20)]
        return {"records": [{"id": i, "accuracy": number} for i, number in enumerate(numbers)]}

    line = make(text, measure).lines()["accuracy", "large"]
    assert line.difference is not None
    assert (line.difference.n, line.difference.mean) == (40, 0.5)
    assert line.difference.interval.method == "bootstrap over 20 groups"  # an id is its own group


def test_records_of_rows_that_are_seeds(make: Callable[..., Case]) -> None:
    text = RECORDS.replace("<row>", "seed_everything").replace("greedy", "0")

    def measure(run: Run) -> dict[str, Any]:
        return {"records": [{"id": i, "accuracy": i % 2 + seed_of(run)} for i in range(20)]}

    line = make(text, measure).lines()["accuracy", "small", "1"]
    assert line.difference is not None
    assert (line.difference.n, line.difference.mean) == (20, 1.0)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"id": 1, "row": "pm", "accuracy": 1.0}] * 2, "record id '1' twice"),
        ([{"row": "pm"}], r"records.jsonl:1: a record needs an id"),
        (
            [{"id": 1, "row": "pm", "acuracy": 1}],
            "measured 'accuracy': did you mean acuracy",
        ),
    ],
)
def test_wrong_records_are_named(
    make: Callable[..., Case], records: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(RECORDS, lambda run: {"records": list(records)}).lines()


def test_a_metric_that_nothing_has_measured_is_an_error_with_near_names(
    make: Callable[..., Case],
) -> None:
    text = ROWS_OF_VARIANTS.replace("val/loss, test/er", "test/err")
    with pytest.raises(ValueError, match="no run has measured 'test/err': did you mean test/er"):
        make(text, losses).lines()


def merge_losses(run: Run) -> dict[str, float]:
    """Losses of a constant rate, merged and annealed: seeds differ more than these."""
    loss = 1000 / run.coordinates["trainer.max_steps"] + [0.5, 0.0, 0.25][seed_of(run)]
    if run.coordinates["train.variant"] == "linear":
        return {"val/loss": loss - [0.125, 0.25, 0.1875][seed_of(run)]}
    return {"val/loss": loss, "merged/val/loss": loss - [0.0625, 0.15625, 0.125][seed_of(run)]}


def test_formulas_combine_variants_of_the_same_seed_and_group(make: Callable[..., Case]) -> None:
    case = make(FORMULAS, merge_losses)
    lines = {(line.group, line.row): line for line in case.lines().values()}
    assert len(lines) == 8
    drop = np.array([0.125, 0.25, 0.1875])
    error = drop - [0.0625, 0.15625, 0.125]
    for group, steps in (("max_steps=600", 600), ("max_steps=1500", 1500)):
        newest = lines[group, "newest"]
        assert newest.mean == pytest.approx(1000 / steps + 0.25)
        assert newest.difference is None
        merged = lines[group, "merged"].difference
        assert merged is not None
        assert list(merged.points.values()) == pytest.approx(error - drop)
        for row, values in (("error", error), ("of the drop", error / drop)):
            line, theory = lines[group, row], stats.ttest_1samp(values, 0)
            assert (line.n, line.num_runs, line.num_planned) == (3, 3, 3)
            assert list(line.points.values()) == pytest.approx(values)
            assert line.sd == pytest.approx(values.std(ddof=1))
            assert line.difference is not None
            assert line.difference.mean == line.mean == pytest.approx(values.mean())
            assert line.difference.interval.p == pytest.approx(theory.pvalue)
            low, high = theory.confidence_interval(0.95)
            interval = line.difference.interval
            assert (interval.low, interval.high) == pytest.approx((low, high))
            assert interval.method == "paired t"


def test_a_formula_leaves_out_a_seed_of_which_an_operand_is_missing(
    make: Callable[..., Case],
) -> None:
    gone = "train/linear-max_steps=600-seed_everything=1"
    case = make(FORMULAS, lambda run: None if run.id == gone else merge_losses(run))
    lines = {(line.group, line.row): line for line in case.lines().values()}
    assert lines["max_steps=600", "newest"].n == 3
    line = lines["max_steps=600", "error"]
    assert (line.n, line.num_runs, line.num_planned) == (2, 2, 3)
    assert list(line.points) == ["0", "2"]
    assert lines["max_steps=1500", "error"].n == 3
    assert "2 of 3" in case.report()
    assert f"nothing stands in for them: {gone}." in (case.out / "table.md").read_text()


def test_an_operand_that_nothing_has_measured_is_an_error_once_all_is_finished(
    make: Callable[..., Case],
) -> None:
    text = FORMULAS.replace("linear:val/loss)", "linear:merged/val/loss)")
    case = make(text, lambda run: None if run.id.endswith("=2") else merge_losses(run))
    lines = {(line.group, line.row): line for line in case.lines().values()}
    assert lines["max_steps=600", "of the drop"].mean is None
    assert "missing" in case.report()
    for run in case.runs:
        if not run.finished:
            run.run_dir.mkdir(parents=True)
            (run.run_dir / "metrics.json").write_text(json.dumps({"fit": merge_losses(run)}))
    message = (
        "rows: 'of the drop': no run of 'linear' has measured 'merged/val/loss': did you mean val"
    )
    with pytest.raises(ValueError, match=message):
        case.lines()


def test_a_quotient_by_zero_shows_as_nan(make: Callable[..., Case]) -> None:
    case = make(FORMULAS, lambda run: {"val/loss": 1.0, "merged/val/loss": 0.5})
    lines = {(line.group, line.row): line for line in case.lines().values()}
    line = lines["max_steps=600", "of the drop"]
    assert line.n == 3
    assert line.mean is not None
    assert math.isnan(line.mean)
    assert line.difference is not None
    assert line.difference.interval.low is None
    assert lines["max_steps=600", "error"].mean == -0.5
    assert "nan" in case.report()


def test_a_formula_without_repetitions_has_one_value_in_each_group(
    make: Callable[..., Case],
) -> None:
    case = make(FORMULAS.replace("  over: seed_everything\n", ""), merge_losses)
    lines = {(line.group, line.row): line for line in case.lines().values()}
    assert len(lines) == 24
    line = lines["max_steps=600, seed_everything=1", "error"]
    assert (line.mean, line.n, line.sd) == (pytest.approx(0.09375), 1, None)
    assert "n = 1: no interval" in case.report()


def test_files_of_formulas(make: Callable[..., Case]) -> None:
    case = make(FORMULAS, merge_losses)
    printed = case.report()
    header = re.split(r"\s{2,}", printed.splitlines()[0].strip())
    assert header == ["group", "row", "mean ± sd", "n", "minus newest or zero [95 %]", "p"]
    with (case.out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["newest", "merged", "error", "of the drop"] * 2
    assert [row["against"] for row in rows[:4]] == ["", "newest", "zero", "zero"]
    assert rows[2]["metric"] == "constant:merged/val/loss - linear:val/loss"
    assert rows[2]["mean"] == rows[2]["difference"]
    assert rows[3]["metric"].endswith(") / (constant:val/loss - linear:val/loss)")  # one line
    with (case.out / "values.csv").open() as file:
        values = {(v["group"], v["row"], v["repetition"]): v for v in csv.DictReader(file)}
    assert len(values) == 24
    assert float(values["max_steps=600", "of the drop", "1"]["value"]) == pytest.approx(0.375)
    markdown = (case.out / "table.md").read_text()
    assert "- error: `constant:merged/val/loss - linear:val/loss`\n" in markdown
    assert "Values minus newest, for each seed_everything:\n" in markdown
    assert "Differences, for each seed_everything:\n" in markdown
    assert "| max_steps=600 | of the drop | +0.500 | +0.375 | +0.333 |" in markdown
    sizes = {path.stem: imread(path).shape for path in (case.out / "figures").iterdir()}
    assert set(sizes) == {"values", "differences", "ratios"}
    assert sizes["values"][1] > sizes["ratios"][1]  # beside the values stand paired differences
    for path in (case.out / "figures").iterdir():
        assert imread(path)[..., :3].std() > 0.02


def test_values_and_differences_are_drawn_on_axes_of_their_own(make: Callable[..., Case]) -> None:
    case = make(FORMULAS, merge_losses)
    assert case.study.table is not None
    lines = list(collect_lines(case.study, case.study.table, case.runs))
    values = draw_metric(
        case.study.table, [line for line in lines if line.row in ("newest", "merged")]
    )
    assert len(values.axes) == 4  # two groups, each with values and differences
    for panel, mean in zip(values.axes[::2], (1.92, 0.92), strict=True):
        low, high = panel.get_xlim()
        assert mean - 0.5 < low < mean < high < mean + 0.5
    errors = draw_metric(case.study.table, [line for line in lines if line.row == "error"])
    (panel,) = errors.axes
    assert panel.get_xlim()[0] <= 0 <= panel.get_xlim()[1] < 0.5
    labels = [label.get_text() for label in panel.get_yticklabels()]
    assert labels == ["max_steps=600", "error", "max_steps=1500", "error"]


def test_files_of_a_report(make: Callable[..., Case]) -> None:
    case = make(ROWS_OF_VARIANTS, losses)
    printed = case.report()
    with (case.out / "table.csv").open() as file:
        rows = {(row["metric"], row["row"]): row for row in csv.DictReader(file)}
    assert len(rows) == 4
    row = rows["val/loss", "mean"]
    assert (float(row["mean"]), float(row["sd"]), row["n"]) == (1.75, 1.25, "3")
    assert (row["against"], row["num_pairs"], row["method"]) == ("max", "3", "paired t")
    assert float(row["low"]) < float(row["difference"]) < float(row["high"])
    assert rows["val/loss", "max"]["difference"] == ""
    with (case.out / "values.csv").open() as file:
        values = list(csv.DictReader(file))
    assert len(values) == 12
    assert {"metric": "test/er", "group": "", "row": "mean", "repetition": "2"}.items() <= (
        values[-1].items()
    )
    assert (values[-1]["value"], values[-1]["difference"]) == ("30.0", "-10.0")
    markdown = (case.out / "table.md").read_text()
    assert "| val/loss | mean | 1.75 ± 1.25 | 3 | -0.58 [-1.53, +0.37] | 0.118 |" in markdown
    assert "| mean | -0.50 | -0.25 | -1.00 |" in markdown
    assert "-0.58 [-1.53, +0.37]" in printed
    assert "mean ± standard deviation over seed_everything" in printed
    for name in ("val_loss", "test_er"):
        picture = imread(case.out / "figures" / f"{name}.png")
        assert picture[..., :3].std() > 0.02  # something is drawn
    assert not list(case.out.rglob("*.tmp"))


def test_nothing_finished_is_no_table_yet(make: Callable[..., Case]) -> None:
    case = make(ROWS_OF_VARIANTS, lambda run: None)
    assert "no table yet" in case.report()
    assert not (case.out / "table.md").exists()
