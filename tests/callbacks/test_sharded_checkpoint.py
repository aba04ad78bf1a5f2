"""Folders of shards: what is refused before torch unpickles it, and what is damaged."""

import io
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from safetensors.torch import load_file
from tenfold.callbacks.checkpointing import (
    _saves_shards,
    is_intact,
    newest_intact_checkpoint,
    read_hyperparameters,
    require_intact,
)
from tenfold.callbacks.sharded_checkpoint import duplicate, put_in_place
from tenfold.modules.checkpoint_files.metadata import METADATA, read_metadata
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


STOP = "trainer: {callbacks+: [{class_path: toy.Interrupt, init_args: {step: 6}}]}"
SHARDS = "--trainer.strategy.init_args.save_distributed_checkpoint=true"


class Malicious:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return (os.system, ("touch executed",))


@pytest.fixture
def checkpoint(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoints" / "last.ckpt"
    optimizer = {"state": {"w": {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
    weights = {"w": torch.randn(30, 40), "b": torch.zeros(2, dtype=torch.bfloat16)}
    dcp.save({"state_dict": weights, "optimizer_0": optimizer}, checkpoint_id=folder, no_dist=True)
    torch.save({"epoch": 1, "hyper_parameters": {"width": 8}}, folder / "meta.pt")
    return folder


def bytes_entry(folder: Path):
    """Name and place of something in the shards that is no tensor."""
    metadata = read_metadata(folder)
    return next(
        place
        for index, place in metadata.storage_data.items()
        if isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata)
    )


def test_a_whole_one_is_intact_and_says_its_hyperparameters(checkpoint):
    assert is_intact(checkpoint)
    assert newest_intact_checkpoint(checkpoint.parent) == checkpoint
    assert read_hyperparameters(checkpoint) == {"width": 8}


def test_malicious_metadata_is_refused_before_it_runs(checkpoint):
    (checkpoint / METADATA).write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match=r"names posix.system, which .* could run code"):
        require_intact(checkpoint)
    assert not Path("executed").exists()
    with (checkpoint / METADATA).open("rb") as file:
        pickle.load(file)
    assert Path("executed").exists()  # it is a real one


def test_a_malicious_object_in_a_shard_is_refused_before_it_runs(checkpoint):
    """torch loads what is no tensor without `weights_only`."""
    place = bytes_entry(checkpoint)
    content = io.BytesIO()
    torch.save(Malicious(), content, _use_new_zipfile_serialization=False)
    shard = checkpoint / place.relative_path
    with shard.open("r+b") as file:
        file.seek(place.offset)
        file.write(content.getvalue()[: place.length])
    with pytest.raises(ValueError, match="holds Python objects, which could run code"):
        require_intact(checkpoint)
    assert not Path("executed").exists()


def test_a_shard_outside_of_the_folder_is_refused(checkpoint):
    metadata = read_metadata(checkpoint)
    for place in metadata.storage_data.values():
        place.relative_path = f"../{place.relative_path}"
    (checkpoint / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="reads from outside of itself"):
        require_intact(checkpoint)


@pytest.mark.parametrize("damage", ["cut", "missing", "no metadata", "cut metadata", "no rest"])
def test_damage_is_noticed_and_an_older_one_named(checkpoint, damage):
    older = checkpoint.with_name("previous.ckpt")
    duplicate(checkpoint, older)
    (shard,) = checkpoint.glob("*.distcp")
    if damage == "cut":
        content = shard.read_bytes()
        shard.unlink()  # the copy is a hard link
        shard.write_bytes(content[:-100])
    elif damage == "cut metadata":
        content = (checkpoint / METADATA).read_bytes()
        (checkpoint / METADATA).unlink()
        (checkpoint / METADATA).write_bytes(content[:-100])
    else:
        names = {"missing": shard.name, "no metadata": METADATA, "no rest": "meta.pt"}
        (checkpoint / names[damage]).unlink()
    assert not is_intact(checkpoint)
    assert is_intact(older)
    with pytest.raises(ValueError, match=r"last.ckpt is damaged .* one is .*previous.ckpt"):
        require_intact(checkpoint)


def test_a_new_one_takes_the_name_and_the_old_one_becomes_the_previous(checkpoint):
    previous, new = checkpoint.with_name("previous.ckpt"), checkpoint.with_name("new")
    for number in (1, 2, 3):
        duplicate(checkpoint, new)
        (new / "meta.pt").unlink()
        torch.save({"epoch": number}, new / "meta.pt")
        put_in_place(new, checkpoint, previous)
        assert torch.load(checkpoint / "meta.pt", weights_only=True)["epoch"] == number
        assert is_intact(previous)
    assert torch.load(previous / "meta.pt", weights_only=True)["epoch"] == 2
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == [
        "last.ckpt",
        "previous.ckpt",
    ]


def test_a_strategy_still_says_whether_it_writes_shards():
    """By a private attribute, the only way there is."""
    for shards in (True, False):
        strategy = ModelParallelStrategy(save_distributed_checkpoint=shards)
        assert _saves_shards(SimpleNamespace(strategy=strategy)) is shards
    assert not _saves_shards(SimpleNamespace(strategy=DDPStrategy()))


@pytest.mark.slow
def test_two_processes_write_shards_and_go_on_from_them_exactly(project, tenfold):
    """FSDP2 on two CPU processes, stopped in the middle of an epoch, resumed from its shards."""
    command = ["fit", "--config", "tiny.yaml", "--config", "overlays/fsdp", "--trainer.devices=2"]
    command += ["--trainer.strategy.init_args.data_parallel_size=2", SHARDS]
    command += ["--trainer.max_steps=12"]
    Path("stop.yaml").write_text(STOP)
    whole = tenfold(*command, "--run_dir=whole")
    assert whole.returncode == 0, whole.stderr
    stopped = tenfold(*command, "--run_dir=parts", "--config", "stop.yaml")
    assert stopped.returncode == 130, stopped.stderr
    resumed = tenfold(*command, "--run_dir=parts", "--ckpt_path=auto")
    assert resumed.returncode == 0, resumed.stderr
    folders = [Path(run, "checkpoints", "last.ckpt") for run in ("whole", "parts")]
    assert all(folder.is_dir() and is_intact(folder) for folder in folders)
    names = {path.name for path in folders[1].parent.iterdir()}
    assert {"last.ckpt", "previous.ckpt"} < names
    assert len(names) == 3  # and one best, no temporary folder
    for run in ("whole", "parts"):  # both states, of steps 8 and 12, put together from their shards
        states = [f"{run}/checkpoints/{name}.ckpt" for name in ("previous", "last")]
        merged = tenfold("merge", *states, "--out", f"{run}.safetensors")
        assert merged.returncode == 0, merged.stderr
    whole, parts = (load_file(f"{run}.safetensors") for run in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
