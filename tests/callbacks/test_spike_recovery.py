"""A spike is noticed, the run goes back to merged snapshots and on past it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tenfold.callbacks.spike_recovery import SpikeInjection, SpikeRecovery
from tenfold.recipes.cli import main

STEPS = 90
RING = {
    "class_path": "CheckpointMerging",
    "init_args": {"every_n_train_steps": 4, "num_checkpoints": 4, "evaluate": False},
}


def run(run_dir: str, *callbacks: dict, steps: int = STEPS, more: tuple[str, ...] = ()) -> int:
    recipe = {
        "base": "recipe.yaml",
        "model": {"class_path": "toy.Toy", "init_args": {"dropout": 0.0}},
        "trainer": {
            "callbacks": list(callbacks),
            "val_check_interval": 30,
            "check_val_every_n_epoch": None,
        },
    }
    Path("spike.yaml").write_text(yaml.safe_dump(recipe))
    command = ["fit", "--config", "spike.yaml", "--run_dir", run_dir, *more]
    return main([*command, "--trainer.max_steps", str(steps)])


def injection(**init_args: Any) -> dict:
    settings = {"step": 50, "lr_factor": 300.0} | init_args
    return {"class_path": "SpikeInjection", "init_args": settings}


def poison(step: int = 50) -> dict:
    return {"class_path": "normed.Poison", "init_args": {"step": step}}


def recovery(**init_args: Any) -> dict:
    settings = {"rtol": 3.0, "distrusted_steps": 4} | init_args
    return {"class_path": "SpikeRecovery", "init_args": settings}


def metrics(run_dir: str) -> dict:
    return json.loads((Path(run_dir) / "metrics.json").read_text())


def last(run_dir: str) -> dict:
    return torch.load(Path(run_dir) / "checkpoints" / "last.ckpt", weights_only=True)


class Catch(SpikeRecovery):
    """Compares the weights after a recovery with the snapshots."""

    def _handle_spike(self, fabric, batch_idx) -> None:
        super()._handle_spike(fabric, batch_idx)
        steps = self.recoveries[-1]["merged_steps"]
        name = "merging/ring/step_{:08d}/rank_00000.safetensors"
        files = [load_file(Path(fabric.default_root_dir) / name.format(s)) for s in steps]
        self.expected = torch.stack([f["embed.weight"] for f in files]).mean(0)
        self.found = fabric.lightning_module.embed.weight.detach().clone()
        self.moment = fabric.optimizers[0].state_dict()["state"][0]["exp_avg"].clone()


@pytest.mark.parametrize("optimizer_state", ["latest", "reset", "keep"])
def test_a_recovered_run_goes_on_where_it_was(project, optimizer_state):
    """Ten steps after the spike, the spoilt run is still far off."""
    late, recover = injection(step=80), recovery(optimizer_state=optimizer_state)
    assert run("healthy", RING) == 0
    assert run("spoilt", RING, late) == 0
    with pytest.warns(UserWarning, match="loss spike at step 8.*mean of the snapshots of steps"):
        assert run("recovered", RING, recover, late) == 0
    losses = {d: metrics(d)["fit"]["val/loss"] for d in ("healthy", "spoilt", "recovered")}
    assert losses["spoilt"] > 100 * losses["healthy"]
    assert losses["recovered"] < 0.1 * losses["spoilt"]
    found = metrics("recovered")["run"]["spike_recoveries"][0]
    assert 80 < found["step"] <= 84
    assert found["loss"] > 4 * found["mean"]
    assert found["merged_steps"] == [68, 72, 76]


def test_weights_and_moments_are_those_of_the_snapshots(project):
    from lightning.pytorch import Trainer
    from normed import Normed
    from tenfold.callbacks.checkpoint_merging import CheckpointMerging
    from torch.utils.data import DataLoader

    saved = {}

    class Moments(CheckpointMerging):
        def on_train_batch_end(self, trainer, *args, **kwargs) -> None:
            super().on_train_batch_end(trainer, *args, **kwargs)
            state = trainer.optimizers[0].state_dict()["state"][0]
            saved[trainer.global_step] = state["exp_avg"].clone()

    torch.manual_seed(0)
    data = torch.rand(40, 1).expand(40, 4) + 0.1 * torch.randn(40, 4)
    catch = Catch(rtol=3.0, distrusted_steps=4)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=55,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=project,
        callbacks=[Moments(every_n_train_steps=4, evaluate=False), catch, SpikeInjection(50)],
    )
    trainer.fit(Normed(), DataLoader(data, 4, shuffle=True), DataLoader(data, 10))
    assert catch.recoveries[0]["merged_steps"] == [40, 44, 48]
    assert torch.allclose(catch.found, catch.expected, atol=1e-7)
    assert torch.equal(catch.moment, saved[48])
    assert not torch.equal(saved[48], saved[49])


def test_a_loss_that_is_no_number_is_a_spike(project):
    with pytest.warns(UserWarning, match="loss spike at step 51 .nan"):
        assert run("run", RING, recovery(), poison()) == 0
    assert metrics("run")["fit"]["val/loss"] < 1
    assert all(value.isfinite().all() for value in last("run")["state_dict"].values())


def test_one_snapshot_is_enough(project):
    """A spike so soon after the warm-up that there is only one old enough."""
    with pytest.warns(UserWarning, match="mean of the snapshots of steps 4,"):
        assert run("run", RING, recovery(), poison(9), steps=30) == 0
    assert metrics("run")["run"]["spike_recoveries"][0]["merged_steps"] == [4]


def test_lost_snapshots_are_done_without(project):
    """A missing file is named, and the others serve."""
    lose = {"class_path": "normed.Lose", "init_args": {"step": 50, "snapshot": 48}}
    with pytest.warns(UserWarning, match="1 of 4 snapshots are lost.*step_00000048"):
        assert run("run", RING, lose, recovery(), poison(52)) == 0
    assert metrics("run")["run"]["spike_recoveries"][0]["merged_steps"] == [40, 44]


def test_a_healthy_run_is_not_touched(project):
    assert run("plain", RING) == 0
    assert run("watched", RING, recovery()) == 0
    for name, value in last("plain")["state_dict"].items():
        assert torch.equal(value, last("watched")["state_dict"][name]), name
    assert metrics("watched")["run"]["spike_recoveries"] == []


def test_a_resumed_run_still_watches(project):
    callbacks = (RING, recovery(), injection())
    assert run("run", *callbacks, steps=48) == 0
    with pytest.warns(UserWarning, match="optimizer state: that of step|optimizer state: reset"):
        assert run("run", *callbacks, more=("--ckpt_path", "last")) == 0
    assert run("whole", *callbacks) == 0
    found = [metrics(d)["run"]["spike_recoveries"] for d in ("run", "whole")]
    assert found[0][0]["step"] == found[1][0]["step"]
    assert found[0][0]["mean"] == pytest.approx(found[1][0]["mean"])


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([recovery()], "SpikeRecovery needs CheckpointMerging before it"),
        ([RING, recovery(max_recoveries=0)], "must be 1 or more"),
        ([RING, recovery(), injection(num_steps=0)], "num_steps 1 or more"),
    ],
)
def test_a_mistake_is_one_line(project, capsys, callbacks, message):
    assert run("run", *callbacks) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize(
    ("settings", "step", "message"),
    [
        ({}, 2, "no snapshot at least 4 steps older"),
        ({"max_recoveries": 1}, 50, "after 1 recoveries: lower the rate"),
    ],
)
def test_what_cannot_be_recovered_stops_the_run(project, settings, step, message):
    again = poison(step + 12)
    with pytest.raises(RuntimeError, match=message):
        run("run", RING, recovery(**settings), poison(step), again)
