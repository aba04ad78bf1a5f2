"""Steps: done once, gone on with, refused under other settings; executors give the same."""

import json
import os
import signal
from pathlib import Path

import pytest
from tenfold.datamodules.realsyn.blocks import locate
from tenfold.datamodules.realsyn.executors import LocalExecutor
from tenfold.datamodules.realsyn.steps import Stats, Step, Task, run_step


class Write(Task):
    """Writes its number, and remembers in a file how often it was asked to."""

    def __init__(self, folder: Path, fails_at: int = -1) -> None:
        self.folder, self.fails_at = folder, fails_at

    def __call__(self, task: int) -> Stats:
        if task == self.fails_at:
            raise ValueError(f"task {task} cannot go on")
        with (self.folder / "asked").open("a") as file:
            file.write(f"{task}\n")
        (self.folder / f"{task}.txt").write_text(str(task))
        return Stats(counts={"rows": task}, reasons={"images": {"odd": task % 2}})


class Die(Task):
    def __call__(self, task: int) -> Stats:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Here:
    """Runs tasks in this process, the last one first."""

    def run(self, work, tasks, done):
        for task in reversed(tasks):
            done(task, work(task))


def go(out: Path, work: Task, settings: dict | None = None, overwrite=False, runner=None):
    step = Step("some/step", settings or {}, [], work, 4)
    return run_step(out, step, runner or Here(), overwrite, lambda *_: None)


def test_a_step_is_done_once_and_its_numbers_are_summed(tmp_path):
    folder = tmp_path / "some" / "step"
    work = Write(folder)
    first = go(tmp_path, work)
    assert first.rows == [0, 1, 2, 3]
    assert first.stats.counts == {"rows": 6}
    assert first.stats.reasons == {"images": {"odd": 2}}
    assert go(tmp_path, work).stats == first.stats
    assert (folder / "asked").read_text().split() == ["3", "2", "1", "0"]
    assert json.loads((folder / "_stats.json").read_text())["counts"] == {"rows": 6}


def test_a_step_goes_on_where_it_failed(tmp_path):
    folder = tmp_path / "some" / "step"
    with pytest.raises(ValueError, match="task 1 cannot go on"):
        go(tmp_path, Write(folder, fails_at=1))
    assert not (folder / "_SUCCESS").exists()
    go(tmp_path, Write(folder))
    assert (folder / "asked").read_text().split() == ["3", "2", "1", "0"]
    assert (folder / "_SUCCESS").exists()


def test_a_step_goes_on_where_a_killed_process_was_writing_its_settings(tmp_path):
    folder = tmp_path / "some" / "step"
    folder.mkdir(parents=True)
    (folder / "._settings.json.7.tmp").touch()
    go(tmp_path, Write(folder))
    assert [*tmp_path.rglob(".*")] == []


def test_parts_that_killed_processes_left_are_gone_at_the_end(tmp_path):
    folder = tmp_path / "some" / "step"
    with pytest.raises(ValueError, match="task 1 cannot go on"):
        go(tmp_path, Write(folder, fails_at=1))
    (folder / ".1.txt.7.tmp").touch()
    go(tmp_path, Write(folder))
    assert [*tmp_path.rglob(".*")] == []


def test_files_of_others_are_refused_and_stay(tmp_path):
    folder = tmp_path / "some" / "step"
    folder.mkdir(parents=True)
    (folder / ".mine.tmp").touch()
    with pytest.raises(ValueError, match="holds other files"):
        go(tmp_path, Write(folder))
    assert (folder / ".mine.tmp").exists()


def test_overwriting_that_is_killed_can_be_gone_on_with(tmp_path, monkeypatch):
    folder = tmp_path / "some" / "step"
    go(tmp_path, Write(folder), {"min_words": 3})
    with monkeypatch.context() as patch:
        patch.setattr("tenfold.datamodules.realsyn.steps.shutil.rmtree", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            go(tmp_path, Write(folder), {"min_words": 5}, overwrite=True)
    go(tmp_path, Write(folder), {"min_words": 5})
    assert [*tmp_path.rglob(".*")] == []


def test_other_settings_are_refused_and_made_anew_when_asked(tmp_path):
    folder = tmp_path / "some" / "step"
    go(tmp_path, Write(folder), {"min_words": 3})
    with pytest.raises(ValueError, match=r"other settings \(min_words: 3, not 5\): choose .*--out"):
        go(tmp_path, Write(folder), {"min_words": 5})
    (folder / "stale").touch()
    go(tmp_path, Write(folder), {"min_words": 5}, overwrite=True)
    assert not (folder / "stale").exists()
    (tmp_path / "new" / "some" / "step").mkdir(parents=True)
    (tmp_path / "new" / "some" / "step" / "mine.txt").touch()
    with pytest.raises(ValueError, match="holds other files"):
        go(tmp_path / "new", Write(folder))


def test_examples_are_the_same_whatever_the_parts():
    def stats(numbers):
        rows = [{"id": str(n), "reason": "kept" if n % 3 else "short"} for n in numbers]
        return Stats(examples={"sentences": rows}, histograms={"h": [1, 2]}, edges={"h": [0, 1, 2]})

    one, two = Stats(), Stats()
    for part in (range(50), range(50, 100)):
        one.add(stats(part))
    for part in (range(70, 100), range(20), range(20, 70)):
        two.add(stats(part))
    assert one.examples == two.examples
    assert len(one.examples["sentences"]) == 48


def test_rows_are_found_across_shards():
    assert locate([3, 0, 2, 5], 2, 6) == [(0, 2, 3), (2, 0, 2), (3, 0, 1)]
    assert locate([3], 5, 9) == []


def test_a_killed_worker_is_one_error_and_the_next_run_goes_on(tmp_path):
    executor = LocalExecutor(1)
    try:
        with pytest.raises(ValueError, match=r"a worker process was killed.*goes on"):
            executor.run(Die(), [0], lambda *_: None)
    finally:
        executor.close()


def test_an_error_of_a_task_reaches_the_caller(tmp_path):
    executor = LocalExecutor(2)
    try:
        with pytest.raises(ValueError, match="task 0 cannot go on"):
            executor.run(Write(tmp_path, fails_at=0), [0, 1], lambda *_: None)
    finally:
        executor.close()


def test_senseless_numbers_are_refused():
    with pytest.raises(ValueError, match="executor: num_processes"):
        LocalExecutor(0)
