"""Averages of checkpoints against float64 and against closed forms; what is refused."""

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tenfold.modules import checkpoint_merge
from tenfold.modules.checkpoint_files import (
    StoredTensor,
    open_checkpoint,
    write_safetensors,
    writing_order,
)
from tenfold.modules.checkpoint_merge import merge_blocks, plan_merge
from tenfold.modules.merge_weights import MergeScheme
from torch import Tensor

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


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


SPECS = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6),
    st.tuples(
        st.sampled_from([*FLOATS, torch.complex64, torch.int64, torch.bool]),
        st.lists(st.integers(0, 9), max_size=3),
    ),
    min_size=1,
    max_size=5,
)
Specs = dict[str, tuple[torch.dtype, list[int]]]


def make_states(specs: Specs, count: int, seed: int) -> list[dict[str, Tensor]]:
    """Checkpoints of one run: random numbers of the same shapes."""
    generator = torch.Generator().manual_seed(seed)

    def number(dtype: torch.dtype, shape: list[int]) -> Tensor:
        if dtype in (torch.int64, torch.bool):
            return torch.randint(0, 2, shape, generator=generator).to(dtype)
        wide = torch.complex64 if dtype.is_complex else torch.float64
        return (3 * torch.randn(shape, generator=generator, dtype=wide)).to(dtype)

    return [{name: number(*spec) for name, spec in specs.items()} for _ in range(count)]


@settings(max_examples=40, deadline=None)
@given(
    SPECS,
    st.integers(2, 5),
    st.integers(0, 2**31),
    st.sampled_from(["sma", "wma", "ema", "wsm", "qam"]),
    st.sampled_from(["ckpt", "safetensors"]),
)
def test_averages_agree_with_float64_in_every_dtype_and_format(
    tmp_path_factory, specs, count, seed, scheme, suffix
):
    states = make_states(specs, count, seed)
    weights = MergeScheme(scheme, decay_shape="cosine").weights(count)
    folder = tmp_path_factory.mktemp("case")
    paths = []
    for step, state in enumerate(states):
        paths.append(folder / f"step_{step}.{suffix}")
        save(paths[-1], state, step) if suffix == "ckpt" else save_file(state, paths[-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_merge, "BLOCK_BYTES", 64)
        merged = merge(paths, weights)
    assert merged.keys() == states[0].keys()
    for name, value in merged.items():
        assert value.dtype == states[0][name].dtype
        assert value.shape == states[0][name].shape
        if not (value.is_floating_point() or value.is_complex()):
            assert torch.equal(value, states[-1][name])
            continue
        expected = reference(states, name, weights)
        # The rounding of what is written, and sums of numbers up to 20 in fp32 or fp64.
        epsilon = torch.finfo(value.dtype).eps
        error = (value.to(expected.dtype) - expected).abs()
        bound = epsilon * expected.abs() + (1e-13 if epsilon < 1e-12 else 1e-5)
        assert (error <= bound).all(), (name, value.dtype, error.max())


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(FLOATS),
    st.sampled_from(["sma", "wma", "ema", "qam"]),
    st.integers(2, 12),
    st.integers(0, 2**31),
)
def test_what_is_the_same_in_all_checkpoints_comes_out_bit_for_bit(
    tmp_path_factory, dtype, scheme, count, seed
):
    """As a frozen parameter is. A plain weighted sum fails this in float32."""
    frozen = torch.randn(64, generator=torch.Generator().manual_seed(seed)).mul(100).to(dtype)
    folder = tmp_path_factory.mktemp("same")
    paths = [folder / f"step_{step}.safetensors" for step in range(count)]
    for path in paths:
        save_file({"frozen": frozen}, path)
    merged = merge(paths, MergeScheme(scheme).weights(count))
    assert torch.equal(merged["frozen"], frozen)


def test_bf16_sums_are_kept_in_fp32(tmp_path):
    """One unit in the last place in one of 16 checkpoints: a bf16 sum loses it."""
    states = [{"w": torch.full((8,), 1.0 + 0.0078125 * (i == 15)).bfloat16()} for i in range(16)]
    paths = [save(tmp_path / f"{i}.ckpt", state, i) for i, state in enumerate(states)]
    merged = merge(paths, [1 / 17] * 15 + [2 / 17], dtype=torch.float32)["w"]
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged, torch.full((8,), 1 + 0.0078125 * 2 / 17), rtol=2e-7, atol=0)


@pytest.mark.usefixtures("small_blocks")
def test_weights_that_do_not_sum_to_one_are_taken_as_they_are(tmp_path):
    states = [{"w": torch.randn(99)} for _ in range(3)]
    paths = [save(tmp_path / f"{i}.ckpt", state, i) for i, state in enumerate(states)]
    for weights in ([1.0, -1.0, 1.0], [2.0, 3.0, 4.0], [1.0, -0.5, -0.5]):
        merged = merge(paths, weights)["w"]
        torch.testing.assert_close(
            merged.double(), reference(states, "w", weights), rtol=1e-5, atol=1e-5
        )


@settings(max_examples=30, deadline=None)
@given(SPECS, st.integers(0, 2**31))
def test_safetensors_files_read_back_as_written(tmp_path_factory, dtypes_and_shapes, seed):
    states = make_states(dtypes_and_shapes, 1, seed)
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    specs = {
        name: StoredTensor(value.dtype, tuple(value.shape)) for name, value in states[0].items()
    }
    ordered = {name: specs[name] for name in writing_order(specs)}
    with path.open("wb") as file:
        blocks = (states[0][name].reshape(-1) for name in ordered if states[0][name].numel())
        write_safetensors(file, ordered, blocks, {"format": "pt"})
    read = load_file(path)
    assert read.keys() == states[0].keys()
    for name, value in read.items():
        assert value.dtype == states[0][name].dtype
        assert torch.equal(value, states[0][name])
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert length % 8 == 0
    opened = open_checkpoint(path)
    for name, tensor in opened.tensors.items():
        (piece,) = tensor.pieces
        assert (piece.position - 8 - length) % tensor.dtype.itemsize == 0, name


def test_differences_are_found_in_headers(tmp_path):
    good = {"a": torch.ones(2, 3), "b": torch.ones(2)}
    newest = save(tmp_path / "new.ckpt", good, 9)
    for other, message in [
        ({"a": good["a"]}, "old.ckpt lacks 'b'"),
        ({**good, "c": good["b"]}, "old.ckpt has 'c', which .*new.ckpt lacks"),
        ({**good, "a": torch.ones(3, 2)}, r"'a' has the shape \(3, 2\) in .*old.ckpt, \(2, 3\) in"),
        ({**good, "b": torch.ones(2).half()}, "'b' is float16 in .*old.ckpt, float32 in"),
    ]:
        opened = [open_checkpoint(save(tmp_path / "old.ckpt", other, 1)), open_checkpoint(newest)]
        with pytest.raises(ValueError, match=message):
            plan_merge(opened, [0.5, 0.5])


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("x.weight_packed", torch.zeros(4, 8, dtype=torch.uint8)),
        ("x.weight", torch.zeros(4, 8, dtype=torch.int8)),
        ("x.qweight", torch.zeros(4, 8, dtype=torch.int32)),
        ("x.weight", torch.zeros(4, 8).to(torch.float8_e4m3fn)),
    ],
)
def test_quantised_codes_are_refused(tmp_path, name, codes):
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for path in paths:
        save_file({name: codes, "mask": torch.ones(3, 3, dtype=torch.bool)}, path)
    with pytest.raises(ValueError, match=r"holds quantised codes, which have no average"):
        merge(paths)


def test_buffers_are_the_newest_s_or_averaged(tmp_path):
    names = ("bn.running_mean", "bn.num_batches_tracked", "act.observer.min_val", "bn.weight")
    paths = []
    for i in range(2):
        values = [torch.tensor([float(i)]), torch.tensor(i), torch.tensor(float(i)), torch.ones(1)]
        paths.append(save(tmp_path / f"{i}.ckpt", dict(zip(names, values, strict=True)), i))
    last, averaged = merge(paths), merge(paths, buffers="average")
    assert [float(last[name]) for name in names] == [1, 1, 1, 1]
    assert [float(averaged[name]) for name in names] == [0.5, 1, 1, 1]
    plan = plan_merge([open_checkpoint(path) for path in paths], [0.5, 0.5])
    assert plan.num_averaged == 1
    assert plan.newest == {
        "running statistics": ("bn.running_mean",),
        "integers and masks": ("bn.num_batches_tracked",),
        "ranges seen by observers": ("act.observer.min_val",),
    }


@pytest.mark.usefixtures("small_blocks")
def test_numbers_that_are_not_finite_are_named(tmp_path):
    paths = []
    for i in range(3):
        weights = {"fine": torch.ones(9), "net.w": torch.ones(99)}
        weights["net.w"][70] = [1.0, float("-inf"), 1.0][i]
        paths.append(save(tmp_path / f"{i}.ckpt", weights, i))
    with pytest.raises(ValueError, match=r"1\.ckpt: 'net\.w' holds NaN or infinity"):
        merge(paths)
    large = save(
        tmp_path / "large.ckpt", {"fine": torch.ones(9), "net.w": torch.full((99,), 1e5)}, 4
    )
    with pytest.raises(ValueError, match=r"'net\.w' does not fit into torch.float16"):
        merge([large, large], dtype=torch.float16)
