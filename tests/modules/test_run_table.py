import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenfold.modules.run_table import (
    BaselineTable,
    DeltaTable,
    Run,
    pair_runs,
    parse_comparisons,
    read_runs,
    write_runs,
)

HEADER = "run_id,seed,num_parameters,num_tokens,precision,group_size,loss"
BASELINE = "b,0,1e8,1e10,bf16,,3.0"
QUANTIZED = "q,0,1e8,1e10,w4a4,32,3.25"


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def write_run(folder: Path, loss: float, quantization: dict | None = None, **run) -> Path:
    """A run directory of `tenfold fit`."""
    folder.mkdir(parents=True)
    run = {"num_parameters_non_embedding": 1000, "tokens_seen": 5000, "seed": 1, **run}
    run |= {"precision": "32-true"} | ({"quantization": quantization} if quantization else {})
    content = {"fit": {"step": 3, "val/loss": loss, "train/loss": loss - 1}, "run": run}
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


# Reading


def test_csv_and_json_lines_hold_the_same(tmp_path):
    table = write(tmp_path / "runs.csv", HEADER, BASELINE, QUANTIZED)
    lines = [
        '{"run_id": "b", "seed": 0, "num_parameters": 1e8, "num_tokens": 1e10,'
        ' "precision": "bf16", "loss": 3.0}',
        "",
        '{"run_id": "q", "seed": 0, "num_parameters": 100000000, "num_tokens": 1e10,'
        ' "precision": "w4a4", "group_size": 32, "loss": 3.25, "note": "ignored"}',
    ]
    found = read_runs([table])
    assert found == [
        Run("b", 0, 1e8, 1e10, "bf16", None, 3.0),
        Run("q", 0, 1e8, 1e10, "w4a4", 32, 3.25),
    ]
    assert read_runs([write(tmp_path / "runs.jsonl", *lines)]) == found
    assert found[1].where == f"{table}:3"


def test_run_directories_are_found_at_any_depth(tmp_path):
    write_run(tmp_path / "a" / "version_0", 3.0)
    quantization = {"precision": "w4a16", "group_size": 32, "start": 0}
    write_run(tmp_path / "b" / "version_0", 3.5, quantization)
    found = read_runs([tmp_path])
    assert found == [
        Run(f"{tmp_path}/a/version_0", 1, 1000, 5000, "32-true", None, 3.0),
        Run(f"{tmp_path}/b/version_0", 1, 1000, 5000, "w4a16", 32, 3.5),
    ]
    assert read_runs([tmp_path / "b" / "version_0"]) == found[1:]
    assert [run.loss for run in read_runs([tmp_path], metric="train/loss")] == [2.0, 2.5]
    assert [run.delta for run in pair_runs(found)] == [0.5]


def test_a_run_without_a_finished_fit_is_left_out_with_a_warning(tmp_path):
    write_run(tmp_path / "a", 3.0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "metrics.json").write_text('{"test": {}, "run": {}}')
    with pytest.warns(UserWarning, match=f"for want of a finished `fit`: {tmp_path}/b"):
        assert len(read_runs([tmp_path])) == 1


def test_what_is_written_is_read_again(tmp_path):
    runs = [
        Run("a", 0, 74_300_123, 1e10, "bf16", None, 2.75),
        Run("b, with a comma", 3, 1234567.0, 1e10 + 1, "w4a4", 32, 0.1 + 0.2, None, "a"),
        Run("c", 3, 1e8, 1e10, "w4a16", 128, None, -0.0625),
    ]
    write_runs(tmp_path / "runs.csv", runs)
    assert read_runs([tmp_path / "runs.csv"]) == runs
    write_runs(tmp_path / "small.csv", runs[:1])
    assert (
        tmp_path / "small.csv"
    ).read_text() == f"{HEADER}\na,0,74300123,10000000000,bf16,,2.75\n"


BAD_TABLES = {
    "b,0,1e8,1e10,bf16,,nan": r"runs.csv:2: loss is 'nan': expected a finite number",
    "b,0,1e8,1e10,bf16,,high": r"runs.csv:2: loss is 'high'",
    "b,0,1e8,1e10,bf16,,": r"runs.csv:2: baseline 'b' \(group_size is empty\) needs a loss",
    "b,0,inf,1e10,bf16,,3": r"runs.csv:2: num_parameters is 'inf'",
    "b,0,1e8,-5,bf16,,3": r"runs.csv:2: num_tokens is '-5': expected a finite number of at least 1",
    "b,0.5,1e8,1e10,bf16,,3": r"runs.csv:2: seed is '0.5': expected a whole number",
    "b,,1e8,1e10,bf16,,3": r"runs.csv:2: seed is ''",
    ",0,1e8,1e10,bf16,,3": r"runs.csv:2: run_id is empty",
    "b,0,1e8,1e10,,,3": r"runs.csv:2: precision is empty",
    "q,0,1e8,1e10,w4a4,1,3": r"runs.csv:2: group_size is '1': expected a whole number of at",
    "q,0,1e8,1e10,w4a4,32": r"runs.csv:2: the row has not as many fields as the header",
    "q,0,1e8,1e10,w4a4,32,3,9": r"runs.csv:2: the row has not as many fields as the header",
    f"{BASELINE}\n{BASELINE}": r"runs.csv:3: run_id 'b' is that of .*runs.csv:2 too",
    "": r"runs.csv: has no runs",
}


@pytest.mark.parametrize("rows", BAD_TABLES)
def test_a_bad_row_is_named_with_file_and_line(rows, tmp_path):
    path = write(tmp_path / "runs.csv", HEADER, *rows.splitlines())
    with pytest.raises(ValueError, match=BAD_TABLES[rows]):
        read_runs([path])


def test_a_row_with_neither_or_both_of_loss_and_delta_is_named(tmp_path):
    header = HEADER + ",delta"
    for fields in (",", "3.0,0.1"):
        path = write(tmp_path / "runs.csv", header, f"q,0,1e8,1e10,w4a4,32,{fields}")
        with pytest.raises(ValueError, match=r"csv:2: run 'q' needs either a loss or a delta"):
            read_runs([path])


def test_missing_columns_are_named(tmp_path):
    path = write(
        tmp_path / "runs.csv", "run_id,seed,num_parameters,precision,group_size", "b,0,1,x,"
    )
    with pytest.raises(ValueError, match=r"csv:1: no column num_tokens, loss \(or delta\): a run"):
        read_runs([path])
    path = write(tmp_path / "runs.jsonl", '{"run_id": "b", "loss": 3}')
    with pytest.raises(
        ValueError, match=r"jsonl:1: no column seed, num_parameters, num_tokens, pr"
    ):
        read_runs([path])


@pytest.mark.parametrize("line", ["{", "[1]"])
def test_a_line_that_is_no_object_is_named(line, tmp_path):
    path = write(tmp_path / "runs.jsonl", line)
    with pytest.raises(ValueError, match=r"runs.jsonl:1: (no JSON|expected one JSON object)"):
        read_runs([path])


def test_a_bad_run_directory_is_named(tmp_path):
    write_run(tmp_path / "a", 3.0)
    with pytest.raises(ValueError, match=r"a/metrics.json: no fit.val/los: .* one of val/loss"):
        read_runs([tmp_path], metric="val/los")
    write_run(tmp_path / "b", float("nan"))
    with pytest.raises(ValueError, match=r"b/metrics.json: loss is 'nan'"):
        read_runs([tmp_path / "b"])
    write_run(tmp_path / "c", 3.0, seed=None)
    with pytest.raises(ValueError, match=r"c/metrics.json: no run.seed: "):
        read_runs([tmp_path / "c"])
    (tmp_path / "a" / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"a/metrics.json: no JSON"):
        read_runs([tmp_path / "a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no run directory in it"):
        read_runs([tmp_path / "empty"])


def test_a_source_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no file and no folder 'nothing.csv'"):
        read_runs(["nothing.csv"])
    with pytest.raises(ValueError, match=r"runs.xlsx: expected a run table \(.csv, .jsonl\)"):
        read_runs([write(tmp_path / "runs.xlsx", "a")])


# Pairing


def grid() -> list[Run]:
    """Losses of which each pair differs by what the group size says."""
    runs = []
    for n in (1e8, 2e8):
        for seed in (0, 1):
            base = 3.0 + seed / 8 + n / 1e9
            runs.append(Run(f"b{n}{seed}", seed, n, 1e10, "bf16", None, base))
            runs += [
                Run(f"q{n}{seed}{g}", seed, n, 1e10, "w4a4", g, base + g / 1024) for g in (32, 64)
            ]
    return runs


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(grid()))
def test_pairs_do_not_depend_on_the_order_of_rows(order):
    paired = {run.run_id: run for run in pair_runs(order)}
    assert len(paired) == 8
    for run in paired.values():
        assert run.delta == pytest.approx(run.group_size / 1024)
        assert run.baseline_run_id == f"b{run.num_parameters}{run.seed}"


def test_a_named_baseline_wins():
    runs = [
        Run("b", 0, 1e8, 1e10, "bf16", None, 3.0),
        Run("other", 7, 1e8, 1e10, "bf16", None, 2.0),
        Run("q", 0, 1e8, 1e10, "w4a4", 32, 3.25, None, "other"),
    ]
    assert pair_runs(runs)[0].delta == 1.25


def test_a_run_that_cannot_be_paired_is_named():
    baseline = Run("b", 0, 1e8, 1e10, "bf16", None, 3.0)
    lonely = Run("q", 1, 1e8, 1e10, "w4a4", 32, 3.25, where="runs.csv:9")
    with pytest.raises(ValueError, match=r"runs.csv:9: run 'q' has no baseline of num_.* seed=1: "):
        pair_runs([baseline, lonely])
    wrong = Run("q", 1, 1e8, 1e10, "w4a4", 32, 3.25, None, "nothing", where="runs.csv:9")
    with pytest.raises(ValueError, match=r"runs.csv:9: baseline_run_id 'nothing' of run 'q' is no"):
        pair_runs([baseline, wrong])
    twin = Run("b2", 0, 1e8, 1e10, "bf16", None, 3.1)
    torn = Run("q", 0, 1e8, 1e10, "w4a4", 32, 3.25)
    with pytest.raises(ValueError, match=r"run 'q' has several baselines of .*: b, b2: name one"):
        pair_runs([baseline, twin, torn])
    assert pair_runs([baseline, twin]) == []


def test_a_table_of_deltas_needs_no_baselines():
    (run,) = pair_runs([Run("q", 0, 1e8, 1e10, "w4a4", 32, None, 0.0625)])
    assert run.delta == 0.0625


# Choosing and columns


def test_comparisons_choose_runs():
    runs = grid()
    quantized = [run for run in runs if not run.is_baseline]
    assert [r for r in runs if parse_comparisons("num_parameters>=2e8")(r)] == runs[6:]
    found = [r for r in runs if parse_comparisons("group_size != 32, seed<1")(r)]
    assert [run.run_id for run in found] == ["q100000000.0064", "q200000000.0064"]
    assert [r for r in runs if parse_comparisons("precision==w4a4")(r)] == quantized


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_parameters", "is no comparison: write it as 'num_parameters>=9e8'"),
        ("size>3", "no column 'size': there are run_id"),
        ("seed>many", "seed is compared with a number"),
        ("precision>w4a4", "precision is text: compare it with == or !="),
    ],
)
def test_a_wrong_comparison_is_explained(text, message):
    with pytest.raises(ValueError, match=message):
        parse_comparisons(text)


def test_columns_group_seeds_into_cells_and_runs_by_baseline():
    table = DeltaTable.of(pair_runs(grid()))
    assert len(np.unique(table.cells)) == 4
    assert len(np.unique(table.clusters)) == 4
    for cell in range(4):
        own = table.select(table.cells == cell)
        assert len(own) == 2
        assert len(np.unique(own.clusters)) == 2
        assert len(np.unique(own.group_size)) == 1
    means = table.mean_over_seeds()
    assert sorted(means.group_size) == [32, 32, 64, 64]
    assert means.delta == pytest.approx(means.group_size / 1024)
    assert len(BaselineTable.of(grid())) == 4


def test_empty_tables_have_no_rows():
    assert len(DeltaTable.of([]).mean_over_seeds()) == 0
    assert len(BaselineTable.of([])) == 0
