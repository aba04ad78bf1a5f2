"""Checkpoint formats: read and written as their own libraries do; damage, harm, memory."""

import os
import pickle
import threading
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tenfold.modules import checkpoint_merge
from tenfold.modules.checkpoint_files import (
    Checkpoint,
    Piece,
    StoredTensor,
    open_checkpoint,
    write_lightning,
)
from tenfold.modules.checkpoint_files.pickled import load_mapped
from tenfold.modules.checkpoint_merge import merge_blocks, plan_merge
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def save(path: Path, weights: dict[str, Tensor], step: int, **others) -> Path:
    """A checkpoint with the keys that Lightning writes."""
    content = {
        "epoch": 0,
        "global_step": step,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": weights,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"one": {"best": torch.arange(3)}},
        "optimizer_states": [],
        "lr_schedulers": [{"last_epoch": step}],
        **others,
    }
    torch.save(content, path)
    return path


def merge(
    paths: Sequence[Path], weights: Sequence[float] | None = None, **options
) -> dict[str, Tensor]:
    """What `merge_blocks` makes of files, whole."""
    checkpoints = [open_checkpoint(path) for path in paths]
    plan = plan_merge(checkpoints, weights or [1 / len(paths)] * len(paths), **options)
    merged = {}
    for name, tensor in plan.tensors.items():
        blocks = [block.clone() for block in merge_blocks([tensor])]
        flat = torch.cat(blocks) if blocks else torch.empty(0, dtype=tensor.dtype)
        merged[name] = flat.view(tensor.shape)
    return merged


def reference(states: Sequence[dict[str, Tensor]], name: str, weights: Sequence[float]) -> Tensor:
    wide = torch.complex128 if states[0][name].is_complex() else torch.float64
    return sum(w * state[name].to(wide) for w, state in zip(weights, states, strict=True))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 64 bytes, so that small tensors take several."""
    monkeypatch.setattr(checkpoint_merge, "BLOCK_BYTES", 64)


@pytest.mark.usefixtures("small_blocks")
def test_any_layout_in_a_checkpoint_is_read_as_its_values(tmp_path):
    """Transposed, channels last, a slice of a larger storage, expanded, scalar, empty."""

    def state():
        large = torch.randn(10, 12)
        return {
            "transposed": torch.randn(7, 9).t(),
            "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
            "rows": large[3:6],
            "columns": large[:, 2:5],
            "expanded": torch.randn(1, 5).expand(4, 5),
            "scalar": torch.randn(()),
            "empty": torch.empty(0, 3),
            "parameter": torch.nn.Parameter(torch.randn(33)),
        }

    states = [state() for _ in range(3)]
    paths = [save(tmp_path / f"{i}.ckpt", s, i) for i, s in enumerate(states)]
    merged = merge(paths, [0.2, 0.3, 0.5])
    for name, value in merged.items():
        expected = reference(states, name, [0.2, 0.3, 0.5])
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_sharding_is_read_as_the_whole(tmp_path_factory, data):
    """Pieces that divide rows, columns or both, as FSDP with tensor parallelism leaves them."""
    folder = tmp_path_factory.mktemp("pieces")
    rows, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 7))
    whole = torch.arange(rows * columns, dtype=torch.int32).view(rows, columns)
    cut = [
        sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=2))}) for n in (rows, columns)
    ]
    pieces = []
    for top, bottom in zip(cut[0], cut[0][1:], strict=False):
        for left, right in zip(cut[1], cut[1][1:], strict=False):
            file = folder / f"{top}_{left}"
            file.write_bytes(b"head" + whole[top:bottom, left:right].numpy().tobytes())
            pieces.append(Piece(file, 4, (top, left), (bottom - top, right - left)))
    stored = StoredTensor(whole.dtype, tuple(whole.shape), tuple(pieces))
    assert (stored.unit == 1) == (len(cut[1]) == 2 or columns == 1)
    step = stored.unit * data.draw(st.integers(1, 5))
    parts = []
    for start in range(0, whole.numel(), step):
        stop = min(start + step, whole.numel())
        part = torch.empty((stop - start) * 4, dtype=torch.uint8)
        stored.read(start, stop, part)
        parts.append(part.view(torch.int32))
    assert torch.equal(torch.cat(parts).view_as(whole), whole)


def write_ckpt(
    out: Path, paths: Sequence[Path], optimizer_state: str = "reset", dtype=None
) -> dict:
    """Merges checkpoints into one; returns what torch.load finds in it."""
    opened = [open_checkpoint(path) for path in paths]
    count = len(paths)
    average = optimizer_state == "average"
    plan = plan_merge(opened, [1 / count] * count, optimizer_state=average, dtype=dtype)
    once = {n: t for n, t in plan.tensors.items() if n not in plan.aliases}
    tensors = {**once, **plan.optimizer_tensors}
    with out.open("wb") as file:
        write_lightning(
            file,
            tensors,
            merge_blocks(tensors.values()),
            like=paths[-1],
            aliases=plan.aliases,
            optimizer_state=optimizer_state,
            provenance={"from": "a test"},
            scratch_folder=out.parent,
        )
    assert zipfile.ZipFile(out).testzip() is None
    return torch.load(out, weights_only=True, mmap=True)


def adam_run(steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for _ in range(steps):
        net(torch.randn(6, 5)).square().sum().backward()
        optimizer.step()
    return net, optimizer


def test_a_merged_checkpoint_is_the_newest_with_other_weights(tmp_path):
    paths, runs = [], [adam_run(steps) for steps in (2, 3, 4)]
    for i, (net, optimizer) in enumerate(runs):
        paths.append(
            save(
                tmp_path / f"{i}.ckpt",
                net.state_dict(),
                i,
                optimizer_states=[optimizer.state_dict()],
                hyper_parameters={"width": 7},
            )
        )
    newest = torch.load(paths[-1], weights_only=True)
    states = [torch.load(path, weights_only=True)["optimizer_states"][0]["state"] for path in paths]
    for choice in ("reset", "latest", "average"):
        merged = write_ckpt(tmp_path / f"{choice}.ckpt", paths, choice)
        assert merged.keys() == newest.keys() | {"merge_provenance"}
        assert merged["merge_provenance"] == {"from": "a test"}
        for key in ("hyper_parameters", "loops", "global_step", "lr_schedulers"):
            assert merged[key] == newest[key]
        assert torch.equal(merged["callbacks"]["one"]["best"], torch.arange(3))
        weights = merged["state_dict"]
        expected = sum(net.state_dict()["0.weight"].double() for net, _ in runs) / 3
        torch.testing.assert_close(weights["0.weight"].double(), expected, rtol=1e-6, atol=1e-7)
        assert torch.equal(weights["1.running_var"], newest["state_dict"]["1.running_var"])
        assert weights["1.num_batches_tracked"] == 4
        (optimizer,) = merged["optimizer_states"]
        assert optimizer["param_groups"] == newest["optimizer_states"][0]["param_groups"]
        if choice == "reset":
            assert optimizer["state"] == {}
        for index, state in optimizer["state"].items():
            assert state["step"] == 4
            for name in ("exp_avg", "exp_avg_sq"):
                if choice == "latest":
                    expected = states[-1][index][name]
                else:
                    expected = sum(s[index][name] for s in states) / 3
                torch.testing.assert_close(state[name], expected, rtol=1e-5, atol=1e-9)
        net, resumed = adam_run(1)
        net.load_state_dict(weights)
        resumed.load_state_dict(optimizer)
        net(torch.randn(6, 5)).square().sum().backward()
        resumed.step()


def test_tied_weights_stay_tied_in_a_checkpoint(tmp_path):
    paths = []
    for i in range(2):
        shared = torch.full((300, 200), float(i))
        weights = {"embedding": shared, "head": shared, "other": torch.ones(2)}
        paths.append(save(tmp_path / f"{i}.ckpt", weights, i))
    merged = write_ckpt(tmp_path / "merged.ckpt", paths)["state_dict"]
    assert merged["head"].data_ptr() == merged["embedding"].data_ptr()
    assert torch.equal(merged["head"], torch.full((300, 200), 0.5))
    sizes = [path.stat().st_size for path in (paths[-1], tmp_path / "merged.ckpt")]
    assert abs(sizes[1] - sizes[0]) < 1000


def test_weights_that_were_not_always_tied_keep_their_own_values(tmp_path):
    one, shared = torch.ones(3), torch.full((3,), 5.0)
    apart = save(tmp_path / "0.ckpt", {"a": one, "b": 3 * one}, 0)
    tied = save(tmp_path / "1.ckpt", {"a": shared, "b": shared}, 1)
    merged = write_ckpt(tmp_path / "m.ckpt", [apart, tied])["state_dict"]
    assert merged["a"].tolist() == [3.0] * 3
    assert merged["b"].tolist() == [4.0] * 3


def test_a_checkpoint_larger_than_memory_is_mapped(tmp_path):
    """Its tensor is a hole in the file. The kernel refuses to map such a file privately."""
    count = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 2 // 4
    path = tmp_path / "large.ckpt"
    with FakeTensorMode():
        large = torch.empty(count)
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({"state_dict": {"w": large}, "callbacks": [(torch.ones(2),)]}, path)
    assert path.stat().st_size > 4 * count
    assert path.stat().st_blocks * 512 < 1 << 20
    content = load_mapped(path)
    assert content["state_dict"]["w"].shape == (count,)
    assert content["state_dict"]["w"][-3:].tolist() == [0.0] * 3
    assert open_checkpoint(path).tensors["w"].num_bytes == 4 * count


def test_a_merged_checkpoint_takes_another_dtype(tmp_path):
    weights = {"w": torch.randn(4, 5), "n": torch.tensor(3), "half": torch.ones(2).half()}
    paths = [save(tmp_path / f"{i}.ckpt", weights, i) for i in range(2)]
    merged = write_ckpt(tmp_path / "m.ckpt", paths, dtype=torch.bfloat16)["state_dict"]
    assert {name: value.dtype for name, value in merged.items()} == {
        "w": torch.bfloat16,
        "n": torch.int64,
        "half": torch.bfloat16,
    }
    assert torch.equal(merged["w"], weights["w"].bfloat16())


def test_the_live_weights_are_merged_where_an_average_is_kept_beside_them(tmp_path):
    paths = []
    for i in range(2):
        live, average = {"w": torch.full((3,), float(i))}, {"w": torch.full((3,), 100.0)}
        others = {"current_model_state": live, "averaging_state": {"n_averaged": torch.tensor(i)}}
        paths.append(save(tmp_path / f"{i}.ckpt", average, i, **others))
    assert "live weights" in open_checkpoint(paths[0]).notes[0]
    merged = write_ckpt(tmp_path / "m.ckpt", paths)
    for key in ("state_dict", "current_model_state"):
        assert torch.equal(merged[key]["w"], torch.full((3,), 0.5))
    assert merged["averaging_state"]["n_averaged"] == 1


def test_names_lose_what_wrappers_add(tmp_path):
    names = ("net.a.weight", "net._orig_mod.a.weight", "module.net.a.weight")
    paths = [save(tmp_path / f"{i}.ckpt", {n: torch.ones(2)}, i) for i, n in enumerate(names)]
    assert list(merge(paths)) == ["net.a.weight"]
    both = {"a": torch.ones(1), "_orig_mod.a": torch.ones(1)}
    with pytest.raises(ValueError, match=r"'a' and '_orig_mod\.a' are one tensor's name"):
        open_checkpoint(save(tmp_path / "both.ckpt", both, 0))


def test_damaged_files_are_refused(tmp_path):
    weights = {"w": torch.randn(1000), "v": torch.randn(1000)}
    good = save(tmp_path / "good.ckpt", weights, 1)
    bad = tmp_path / "bad.ckpt"
    content = good.read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"bad\.ckpt is damaged: it is incomplete"):
        open_checkpoint(bad)
    position = content.index(weights["v"].numpy().tobytes()) + 2000
    bad.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
    with pytest.raises(ValueError, match=r"bad\.ckpt is damaged: a checksum differs"):
        merge([bad, good])

    position = content.index(b"global_step")
    bad.write_bytes(content[:position] + b"G" + content[position + 1 :])
    with pytest.raises(ValueError, match=r"bad\.ckpt is damaged"):
        open_checkpoint(bad)

    save_file(weights, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    for cut in (content[:-1], content[:40], b"", b"\xff" * 99):
        (tmp_path / "y.safetensors").write_bytes(cut)
        with pytest.raises(ValueError, match=r"y\.safetensors is damaged"):
            open_checkpoint(tmp_path / "y.safetensors")
    (tmp_path / "y.safetensors").write_bytes(content)
    opened = open_checkpoint(tmp_path / "y.safetensors")
    os.truncate(tmp_path / "y.safetensors", len(content) - 4)
    plan = plan_merge([open_checkpoint(tmp_path / "x.safetensors"), opened], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"y\.safetensors is damaged: it ends before"):
        list(merge_blocks(plan.tensors.values()))


class Harmful:
    """What an attacker would put into a pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_python_objects_are_refused_and_not_run(tmp_path):
    trap = tmp_path / "trap"
    path = save(tmp_path / "a.ckpt", {"w": torch.ones(1)}, 1, callbacks={"x": Harmful(trap)})
    with pytest.raises(ValueError, match=r"holds Python objects, which could run code"):
        open_checkpoint(path)
    torch.save({"state_dict": {"w": torch.ones(1)}}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"torch\.save did not write it"):
        open_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"is no Lightning checkpoint"):
        open_checkpoint(path)

    dcp.save({"state_dict": {"w": torch.ones(3)}}, checkpoint_id=tmp_path / "d", no_dist=True)
    (tmp_path / "d/.metadata").write_bytes(pickle.dumps({"planner_data": Harmful(trap)}))
    with pytest.raises(ValueError, match=r"\.metadata names posix.mkdir, which is no part of a"):
        open_checkpoint(tmp_path / "d")
    assert not trap.exists()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("prefix", ["state_dict", "model"])
def test_sharded_checkpoints_are_read_without_a_process_group(tmp_path, prefix):
    states = []
    for i in range(2):
        state = {"net.w": torch.randn(13, 7), "net.b": torch.randn(5).bfloat16()}
        state["net.n"] = torch.tensor(i)
        optimizer = {"state": {"net.w": {"exp_avg": torch.zeros(13, 7), "step": 3.0}}}
        content = {prefix: state, "optimizer_0": optimizer}
        dcp.save(content, checkpoint_id=tmp_path / f"{i}.ckpt", no_dist=True)
        others = {"global_step": 10 * i, "hyper_parameters": {"_class_path": "x", "width": 3}}
        torch.save(others, tmp_path / f"{i}.ckpt/meta.pt")
        states.append(state)
    paths = [tmp_path / "0.ckpt", tmp_path / "1.ckpt"]
    opened = open_checkpoint(paths[1])
    assert (opened.step, opened.settings) == (10, {"width": 3})
    merged = merge(paths, [0.25, 0.75])
    assert merged.keys() == states[0].keys()
    assert merged["net.n"] == 1
    expected = reference(states, "net.w", [0.25, 0.75])
    torch.testing.assert_close(merged["net.w"].double(), expected, rtol=1e-6, atol=1e-7)
    shard = paths[0] / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[content.index(states[0]["net.w"].numpy().tobytes()) + 9] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"__0_0\.distcp is damaged: a checksum differs"):
        merge(paths)
    shard.unlink()
    with pytest.raises(ValueError, match=r"is incomplete: __0_0\.distcp is missing"):
        open_checkpoint(paths[0])
    (paths[0] / ".metadata").write_bytes(b"no pickle")
    with pytest.raises(ValueError, match=r"\.metadata is damaged"):
        open_checkpoint(paths[0])


class AnonymousMemory:
    """Most anonymous memory of this process while the block runs, over that at its begin."""

    def __enter__(self) -> "AnonymousMemory":
        self.start = self.peak = self._now()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *error) -> None:
        self._ended.set()
        self._watcher.join()
        self.increase = self.peak - self.start

    def _watch(self) -> None:
        while not self._ended.is_set():
            self.peak = max(self.peak, self._now())
            time.sleep(0.002)

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def test_memory_grows_neither_with_checkpoints_nor_with_tensors(tmp_path):
    """Whole tensors would take 128 MB each here, whole checkpoints 256 MB."""
    weights = {"a": torch.zeros(64 << 20, dtype=torch.bfloat16), "b": torch.ones(32 << 20)}
    first = save(tmp_path / "0.ckpt", weights, 0, optimizer_states=[{"state": {0: weights["b"]}}])
    size = first.stat().st_size
    assert size > 256 << 20
    del weights
    paths = [first]
    for i in range(1, 5):
        paths.append(tmp_path / f"{i}.ckpt")
        os.link(first, paths[-1])
    write_ckpt(tmp_path / "warm.ckpt", [save(tmp_path / "s.ckpt", {"w": torch.ones(9)}, 0)] * 2)
    increases = []
    for count in (2, 5):
        with AnonymousMemory() as memory:
            write_ckpt(tmp_path / "merged.ckpt", paths[:count], "latest")
        increases.append(memory.increase)
    assert max(increases) < 80 << 20, increases


def test_a_checkpoint_says_what_it_is(tmp_path):
    opened = open_checkpoint(save(tmp_path / "a.ckpt", {"w": torch.ones(2, 3)}, 7))
    assert isinstance(opened, Checkpoint)
    assert (opened.step, opened.has_optimizer_state) == (7, False)
    assert opened.tensors["w"].num_bytes == 24
    save_file({"w": torch.ones(1)}, tmp_path / "b.safetensors", {"step": "12"})
    assert open_checkpoint(tmp_path / "b.safetensors").step == 12
    save_file({"w": torch.ones(1)}, tmp_path / "step_00000000.safetensors")
    assert open_checkpoint(tmp_path / "step_00000000.safetensors").step == 0
    (tmp_path / "c.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"c\.bin is no \.ckpt and no \.safetensors file"):
        open_checkpoint(tmp_path / "c.bin")
