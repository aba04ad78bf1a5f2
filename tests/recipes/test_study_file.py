import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from tenfold.recipes.study_file import Reference, load_study, render, resolve
from tenfold.recipes.study_plan import Run, check_data, plan_runs, select_runs

TRAIN = "model: {class_path: Net}\ndata: {class_path: Points}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("train.yaml").write_text(TRAIN)
    Path("other.yaml").write_text("base: train.yaml\nmodel: {class_path: OtherNet}\n")
    Path("noise.yaml").write_text("data: {class_path: NoisyPoints}\n")
    Path("w4a4.yaml").write_text("trainer: {callbacks+: [{class_path: QAT}]}\n")
    return tmp_path


def plan(content: str | dict[str, Any], **kwargs: Any) -> dict[str, Run]:
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    Path("study.yaml").write_text(text)
    return {run.id: run for run in plan_runs(load_study("study.yaml"), Path("out"), **kwargs)}


TWO_STAGES = """
stages:
  - name: train
    recipe: train.yaml
    variants:
      max: {set: {model.init_args.aggregation: max}}
      set_mixer: {}
      set_mixer_w4a4: {config: [w4a4.yaml]}
    grid: {seed_everything: [0, 1, 2]}
  - name: robustness
    recipe: noise.yaml
    command: test
    set: {ckpt_path: "${train.checkpoint}"}
table: {rows: train.variant, over: seed_everything, against: max, metrics: [test/er]}
"""


def test_a_stage_runs_once_for_each_combination_it_and_its_sources_name(folder: Path) -> None:
    runs = plan(TWO_STAGES)
    assert len(runs) == 18
    run = runs["robustness/max-seed_everything=1"]
    assert [source.id for source in run.sources.values()] == ["train/max-seed_everything=1"]
    assert run.run_dir == Path("out/robustness/max-seed_everything=1")


def test_commands_carry_configs_settings_and_resume(folder: Path) -> None:
    runs = plan(TWO_STAGES)
    place = "out/train/set_mixer_w4a4-seed_everything=2"
    assert runs["train/set_mixer_w4a4-seed_everything=2"].arguments(resolved=True) == [
        *("fit", "--config", "train.yaml", "--config", "w4a4.yaml", "--run_dir", place),
        *("--overwrite=true", "--ckpt_path", "auto", "--seed_everything=2"),
    ]
    train = runs["train/max-seed_everything=0"].arguments(resolved=True)
    assert train[-2:] == ["--model.init_args.aggregation=max", "--seed_everything=0"]


def test_a_recipe_without_model_is_laid_over_the_trained_run(folder: Path) -> None:
    """Else a checkpoint of `max` would be tested inside the model of `set_mixer`."""
    run = plan(TWO_STAGES)["robustness/max-seed_everything=0"]
    place = Path("out/train/max-seed_everything=0")
    (place / "checkpoints").mkdir(parents=True)
    (place / "checkpoints/last.ckpt").write_text("")
    assert run.arguments(resolved=True) == [
        *("test", "--config", f"{place}/config.yaml", "--config", "noise.yaml"),
        *("--run_dir", "out/robustness/max-seed_everything=0", "--overwrite=true"),
        f"--ckpt_path={place}/checkpoints/last.ckpt",
    ]


def test_a_checkpoint_is_not_loaded_into_a_model_with_other_settings(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"trained with model.init_args.aggregation = max.*leave"):
        plan(TWO_STAGES.replace("noise.yaml", "train.yaml"))
    own = TWO_STAGES.replace("noise.yaml", "other.yaml")
    run = plan(own)["robustness/max-seed_everything=0"]  # another class: a model of its own
    assert run.arguments(resolved=False)[1:4] == ["--config", "other.yaml", "--run_dir"]


def test_the_best_checkpoint_is_read_where_one_was_recorded(folder: Path) -> None:
    run = plan(TWO_STAGES)["train/max-seed_everything=0"]
    (run.run_dir / "checkpoints").mkdir(parents=True)
    for name in ("last.ckpt", "step_3.ckpt"):
        (run.run_dir / "checkpoints" / name).write_text("")
    (run.run_dir / "metrics.json").write_text('{"fit": {}}')
    assert run.checkpoint().name == "last.ckpt"
    (run.run_dir / "metrics.json").write_text(
        '{"fit": {"best_checkpoint": "checkpoints/step_3.ckpt"}}'
    )
    assert run.checkpoint().name == "step_3.ckpt"
    (run.run_dir / "checkpoints/step_3.ckpt").unlink()
    with pytest.raises(ValueError, match="left no checkpoint"):
        run.checkpoint()


def test_references_resolve_anywhere_and_keep_their_type(folder: Path) -> None:
    content = """
stages:
  - {name: small, recipe: train.yaml, grid: {seed_everything: [0, 1]}}
  - name: law
    recipe: train.yaml
    set:
      model.init_args.prior: {from: ["${small.run_dir}/curve.csv", "${run_dir}/own.csv"]}
      model.init_args.loss: "${small.metrics.fit.val/loss}"
      model.init_args.name: "loss_${small.metrics.fit.val/loss}"
"""
    run = plan(content)["law/seed_everything=1"]
    small = Path("out/small/seed_everything=1")
    small.mkdir(parents=True)
    (small / "metrics.json").write_text('{"fit": {"val/loss": 0.25}}')
    assert run.arguments(resolved=True)[-3:] == [
        f'--model.init_args.prior={{"from": ["{small}/curve.csv", "${{run_dir}}/own.csv"]}}',
        "--model.init_args.loss=0.25",
        "--model.init_args.name=loss_0.25",
    ]
    (small / "metrics.json").write_text('{"fit": {"val/los": 0.25}}')
    with pytest.raises(
        ValueError, match=r"small/seed_everything=1 .* val/loss: did you mean val/los"
    ):
        run.arguments(resolved=True)


def test_shared_and_own_axes_of_three_stages(folder: Path) -> None:
    """A VLM is trained once per seed and decoded by many strategies; a judge reads both."""
    content = """
stages:
  - name: judge
    recipe: train.yaml
    command: predict
    set: {model.init_args.answers: "${decode.run_dir}"}
  - name: decode
    recipe: noise.yaml
    command: test
    variants: {greedy: {}, pm: {}, oracle: {set: {model.init_args.map: "${maps.run_dir}"}}}
    set: {ckpt_path: "${train.checkpoint}"}
  - {name: maps, recipe: train.yaml, command: predict}
  - {name: train, recipe: train.yaml, grid: {seed_everything: [0, 1]}}
"""
    runs = plan(content)
    counts = {
        name: sum(run.stage.name == name for run in runs.values()) for name in ("train", "maps")
    }
    assert counts == {"train": 2, "maps": 1}
    assert len(runs) == 2 + 1 + 2 * 3 + 2 * 3
    order = list(runs)
    for position, run in enumerate(runs.values()):
        assert all(order.index(source.id) < position for source in run.sources.values())
    oracle = runs["decode/seed_everything=1-oracle"]
    assert set(oracle.sources) == {"maps", "train"}
    assert set(runs["decode/seed_everything=1-pm"].sources) == {"train"}
    assert runs["maps/run"].run_dir == Path("out/maps/run")


def test_two_variant_axes_are_told_apart(folder: Path) -> None:
    content = """
stages:
  - {name: train, recipe: train.yaml, variants: {a: {}, a-b: {}}}
  - name: decode
    command: test
    recipe: noise.yaml
    variants: {b-c: {}, c: {}}
    set: {ckpt_path: "${train.checkpoint}"}
"""
    runs = plan(content)
    assert "decode/train=a-decode=b-c" in runs
    assert len(runs) == 2 + 4


@st.composite
def dags(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Stages in any order, and the number of runs that each must have."""
    sizes = {f"model.key_{i}": draw(st.integers(1, 3)) for i in range(3)}
    stages: list[dict[str, Any]] = []
    axes: dict[str, dict[str, int]] = {}
    for i in range(draw(st.integers(1, 4))):
        name = f"s{i}"
        reads = draw(st.sets(st.sampled_from(sorted(axes)))) if axes else set()
        keys = draw(st.sets(st.sampled_from(sorted(sizes)), max_size=2))
        num_variants = draw(st.integers(0, 3))
        stages.append(
            {
                "name": name,
                "set": {f"data.from_{source}": f"${{{source}.run_dir}}" for source in reads},
                "grid": {key: list(range(sizes[key])) for key in keys},
                "variants": {f"v{k}": {} for k in range(num_variants)},
            }
        )
        axes[name] = {key: sizes[key] for key in keys}
        axes[name] |= {f"{name}.variant": num_variants} if num_variants else {}
        for source in reads:
            axes[name] |= axes[source]
    counts = {name: math.prod(found.values()) for name, found in axes.items()}
    return draw(st.permutations(stages)), counts


@settings(max_examples=60, deadline=None)
@given(dags())
def test_number_of_runs_is_the_product_of_the_named_axes(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[list[dict[str, Any]], dict[str, int]]
) -> None:
    stages, counts = case
    folder = tmp_path_factory.mktemp("dag")
    (folder / "train.yaml").write_text(TRAIN)
    stages = [{**stage, "recipe": str(folder / "train.yaml")} for stage in stages]
    (folder / "study.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    runs = plan_runs(load_study(str(folder / "study.yaml")), folder / "out")
    found = {name: sum(run.stage.name == name for run in runs) for name in counts}
    assert found == counts
    assert len({run.id for run in runs}) == len(runs)
    for run in runs:
        for source in run.sources.values():
            assert source.coordinates.items() <= run.coordinates.items()


VALUES = st.one_of(
    st.text(max_size=80).filter(lambda text: "${" not in text),
    st.integers(),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none(),
    st.fixed_dictionaries({"class_path": st.just("a.Net"), "init_args": st.integers(0, 9)}),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=6, unique_by=lambda value: render(value).lower()))
def test_run_names_are_unique_and_safe_as_paths(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("names")
    (folder / "train.yaml").write_text(TRAIN)
    stage = {"name": "s", "recipe": str(folder / "train.yaml")}
    stages = [{**stage, "grid": {"model.init_args.x": values}}]
    text = yaml.safe_dump({"stages": stages}, allow_unicode=True)
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    runs = plan_runs(load_study(str(folder / "study.yaml")), folder / "out")
    names = [run.run_dir.name for run in runs]
    assert len({name.lower() for name in names}) == len(values)
    assert all(re.fullmatch(r"[\w.+=~-]{1,200}", name, re.ASCII) for name in names)


def test_class_values_have_readable_names(folder: Path) -> None:
    grid = {
        "model.init_args.backbone": [{"class_path": "tenfold.PointNet"}, {"class_path": "DGCNN"}]
    }
    runs = plan({"stages": [{"name": "s", "recipe": "train.yaml", "grid": grid}]})
    assert [re.sub("~.*", "", run_id) for run_id in runs] == [
        "s/backbone=PointNet",
        "s/backbone=DGCNN",
    ]


def test_settings_survive_the_command_line() -> None:
    values: list[tuple[Any, Any]] = [
        (float, 1e-05),
        (float, -1e-3),
        (float, float("inf")),
        (float, float("-inf")),
        (bool, True),
        (int | None, None),
        (str, "true"),
        (str, "a b: -c"),
        (str, "-x"),
        (list[float], [1e-05, 2.0]),
        (
            dict[str, Any],
            {"class_path": "A", "init_args": {"lr": 1e-5, "name": "true", "no": None}},
        ),
    ]
    for kind, value in values:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--x", type=kind)
        assert parser.parse_args([f"--x={render(value)}"]).x == value, value


def test_numbers_without_a_dot_are_numbers(folder: Path) -> None:
    runs = plan(
        "stages: [{name: s, recipe: train.yaml, grid: {model.init_args.lr: [1e-3, 3E-4, '1e-3x']}}]"
    )
    assert [run.coordinates["model.init_args.lr"] for run in runs.values()] == [1e-3, 3e-4, "1e-3x"]


def test_resolve_leaves_what_is_no_reference() -> None:
    value = {"a": [1, None, "$x", "${run_dir}/b"], "b": {"c": True}}
    assert resolve(value, lambda reference: pytest.fail(reference.text)) == value
    assert Reference.parse("a.metrics.fit.val/x.y").metric == "val/x.y"


FILE_ERRORS = {
    "stage: []": "unknown key 'stage': did you mean stages",
    "stages: []": "stages: expected a list with at least one item",
    "[]": "expected `key: value` lines, found list",
    "a: b: c": "study.yaml:1: not valid YAML: mapping values are not allowed here",
    "stages: [{name: a}]": r"stages\[0\]: 'recipe' is missing",
    "stages: [{name: a.b, recipe: x}]": "a stage name may hold no dot",
    "stages: [{name: a/b, recipe: x}]": "name 'a/b' may hold letters",
    "stages: [{name: a, recipe: x}, {name: A, recipe: x}]": "'a' and 'A' are the same name",
    "stages: [{name: a, recipe: train.yamll}]": "no file and no built-in recipe 'train.yamll'",
    "stages: [{name: a, recipe: train.yaml, config: [train.yaml]}]": "a config is given twice",
    "stages:\n- name: a\n  recipe: x\n  variants:\n    b: {}\n    b: {}": (
        "study.yaml:6: not valid YAML: 'b' is given twice"
    ),
    """stages:
- {name: a, recipe: x, set: {model.x: '${trian.run_dir}'}}
- {name: train, recipe: x}""": r"'a': \$\{trian.run_dir\}: no stage 'trian': did you mean train",
    """stages:
- {name: a, recipe: x, set: {model.x: '${c.run_dir}'}}
- {name: b, recipe: x, set: {model.x: '${a.run_dir}'}}
- {name: c, recipe: x, set: {model.x: '${b.run_dir}'}}""": "each other: a -> c -> b -> a",
    """stages:
- {name: a, recipe: x, command: test}
- {name: b, recipe: x, set: {model.x: '${a.checkpoint}'}}""": "'a' is a test: no checkpoint",
    """stages:
- {name: a, recipe: x}
- {name: b, recipe: x, set: {model.x: '${a.metrics.test.er}'}}""": "'a' has metrics of fit and run",
    """stages:
- {name: a, recipe: x, grid: {model.x: [1]}}
- {name: b, recipe: x, grid: {model.x: [1, 2]}, set: {model.y: '${a.run_dir}'}}""": (
        r"stage 'b': model.x has other values .*\[1\] and \[1, 2\]"
    ),
}
STAGE_ERRORS = {
    "commnd: fit": "unknown key 'commnd': did you mean command",
    "command: train": "command 'train' is none of fit, validate, test",
    "config: y": "stage 'a': config: expected a list of names, found 'y'",
    "variants: [b]": "variants: expected a mapping of names",
    "variants: {b: {se: {}}}": "variants.b: unknown key 'se': did you mean set",
    "variants: {off: {}}": "False is no name: quote it",
    "variants: {b: {}, B: {}}": "'b' and 'B' are the same name",
    "grid: {seed: [1]}": "'seed' is neither a full dotted key",
    "grid: {seed_everything: 3}": "grid.seed_everything: expected a list",
    "grid: {model.x: [1, '1']}": "'1' and '1' are the same name",
    "grid: {model.x: ['${b.run_dir}']}": "belong in set",
    "grid: {model.x: [1]}, set: {model.x: 2}": "both in set and in grid",
    "set: {model x: 1}": "'model x' is no dotted key",
    "set: {run_dir: y}": "'run_dir' cannot be set: the study names",
    "set: {model.x: '${b.run_dirr}'}": "cannot read .*STAGE.checkpoint",
    "set: {model.x: '${b.metrics.x}'}": "cannot read",
    "set: {model.x: '${b.run_dir'}": "that it does not close",
    "set: {model.x: '${a.run_dir}'}": "read from each other: a -> a",
}
ERRORS = {
    **FILE_ERRORS,
    **{f"stages: [{{name: a, recipe: x, {k}}}]": message for k, message in STAGE_ERRORS.items()},
}


@pytest.mark.parametrize("text", ERRORS)
def test_a_wrong_file_is_one_clear_line(folder: Path, text: str) -> None:
    with pytest.raises(ValueError, match=ERRORS[text]) as caught:
        plan(text)
    assert "\n" not in str(caught.value)


STAGES = """
stages:
  - name: t
    recipe: train.yaml
    variants: {max: {}, mean: {}}
    grid: {seed_everything: [0]}
"""
TABLES = {
    "{rows: t.variants, metrics: [a]}": "neither an axis nor <row>: did you mean t.variant",
    "{rows: t.variant, over: seed, metrics: [a]}": "'seed' is neither records nor an axis",
    "{rows: t.variant, over: t.variant, metrics: [a]}": "rows and over are both t.variant",
    "{rows: t.variant, against: mxa, metrics: [a]}": "'mxa' is no row: did you mean max",
    "{rows: t.variant, metrics: []}": "expected at least one metric",
    "{rows: t.variant}": "table: 'metrics' is missing",
    "{rows: t.variant, metrics: ['test:a']}": "stage 'test' does not exist: there are t",
    "{rows: t.variant, metrics: ['test/<row>/a']}": 'needs rows: "<row>"',
    "{rows: <row>, metrics: [test/a]}": "'test/a' needs <row> once",
    "{rows: <row>, metrics: [test/<row>/<row>]}": "needs <row> once",
    "{rows: <row>, over: records, metrics: [a/<row>]}": "over other than records",
    "{row: t.variant}": "unknown key 'row': did you mean rows",
}


@pytest.mark.parametrize("table", TABLES)
def test_a_wrong_table_is_one_clear_line(folder: Path, table: str) -> None:
    with pytest.raises(ValueError, match=TABLES[table]):
        plan(STAGES + f"table: {table}")


def test_a_table_needs_a_stage_that_varies_rows_and_over(folder: Path) -> None:
    content = """
stages:
  - {name: a, recipe: train.yaml, variants: {x: {}, y: {}}}
  - {name: b, recipe: train.yaml, grid: {seed_everything: [0, 1]}}
table: {rows: a.variant, over: seed_everything, metrics: [val/loss]}
"""
    with pytest.raises(ValueError, match=r"no stage varies both a\.variant and seed"):
        plan(content)


def test_override_reaches_every_run_but_not_the_grid(folder: Path) -> None:
    runs = plan(TWO_STAGES, override={"trainer.max_steps": 5})
    assert all("--trainer.max_steps=5" in run.arguments(resolved=False) for run in runs.values())
    with pytest.raises(ValueError, match="stage 'train' varies seed_everything in its grid"):
        plan(TWO_STAGES, override={"seed_everything": 5})
    with pytest.raises(ValueError, match="belong in the study"):
        plan(TWO_STAGES, override={"model.x": "${train.run_dir}"})


def test_only_selects_runs_with_what_they_read(folder: Path) -> None:
    runs = list(plan(TWO_STAGES).values())
    assert len(select_runs(runs, None)) == 18
    assert len(select_runs(runs, "train")) == 9
    found = [run.id for run in select_runs(runs, "robustness/max*=0, train/set_mixer-*")]
    assert found == [
        *("train/max-seed_everything=0", "train/set_mixer-seed_everything=0"),
        *("train/set_mixer-seed_everything=1", "train/set_mixer-seed_everything=2"),
        "robustness/max-seed_everything=0",
    ]
    with pytest.raises(ValueError, match="no run matches 'trian': did you mean train"):
        select_runs(runs, "trian")


def test_a_definition_covers_contents_bases_and_sources(folder: Path) -> None:
    content = TWO_STAGES.replace("recipe: train.yaml", "recipe: other.yaml")
    name = "robustness/max-seed_everything=0"
    before = plan(content)[name].definition()
    assert plan(content)[name].definition() == before
    Path("train.yaml").write_text("# said otherwise\n" + TRAIN)
    assert plan(content)[name].definition() == before
    Path("train.yaml").write_text(TRAIN + "trainer: {max_epochs: 2}\n")  # base of what it reads
    assert plan(content)[name].definition() != before


def test_the_same_data_is_what_configs_and_settings_say(folder: Path) -> None:
    content = """
stages:
  - name: s
    recipe: train.yaml
    variants:
      a: {}
      optimizer: {set: {model.init_args.lr: 1}}
      qat: {config: [w4a4.yaml]}
      noisy: {config: [noise.yaml]}
      small: {set: {data.init_args.num_points: 16}}
      other: {recipe: other.yaml}
"""
    data = {run.run_dir.name: run.data for run in plan(content).values()}
    assert data["a"] == data["optimizer"] == data["qat"] == data["other"]
    assert len({data["a"], data["noisy"], data["small"]}) == 3


def test_corpora_are_not_mixed_unless_the_rows_vary_them(folder: Path) -> None:
    content = """
stages:
  - name: s
    recipe: train.yaml
    variants: {a: {}, noisy: {config: [noise.yaml]}}
    grid: {seed_everything: [0, 1]}
"""
    runs = plan(content)
    for run in runs.values():
        run.run_dir.mkdir(parents=True)
        found = "hash2" if "noisy" in run.id else "hash1"
        (run.run_dir / "metrics.json").write_text(
            f'{{"fit": {{}}, "run": {{"data_hash": "{found}"}}}}'
        )
    check_data(list(runs.values()))
    last = runs["s/a-seed_everything=1"]
    (last.run_dir / "metrics.json").write_text('{"fit": {}, "run": {"data_hash": "hash3"}}')
    with pytest.raises(ValueError, match=r"s/a-seed_everything=0 and .*=1 .*hash1 and hash3"):
        check_data(list(runs.values()))
    (last.run_dir / "metrics.json").write_text('{"run": {"data_hash": "hash3"}}')  # unfinished
    check_data(list(runs.values()))


def test_planning_imports_neither_torch_nor_numbers(folder: Path) -> None:
    Path("study.yaml").write_text(TWO_STAGES)
    code = (
        "import sys; from tenfold.recipes.study import run_study; "
        "from tenfold.recipes.study_file import load_study; "
        "run_study(load_study('study.yaml'), dry_run=True); "
        "print([m for m in ('torch', 'numpy', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "18 runs, 0 finished; nothing was started" in done.stdout
    assert not Path("runs").exists()


def test_the_command_line_says_in_one_line_what_is_wrong(folder: Path) -> None:
    Path("study.yaml").write_text(TWO_STAGES.replace("recipe: noise", "recipee: noise"))
    command = [sys.executable, "-m", "tenfold.recipes.cli", "study", "--config", "study.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: study.yaml: stages[1]: unknown key 'recipee': did you mean recipe?"
    )
    Path("study.yaml").write_text(TWO_STAGES)
    done = subprocess.run([*command, "--dry_run=true"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "18 runs, 0 finished" in done.stdout
