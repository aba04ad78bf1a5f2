"""`--init_from_merge`: a run that starts from the merge of another's checkpoints."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tenfold.recipes.cli import main


@pytest.fixture
def trained(project) -> Path:
    """A run with a ring of the snapshots of steps 6, 12, 18 and 24."""
    ring = {"every_n_train_steps": 6, "num_checkpoints": 4, "evaluate": False}
    callback = {"class_path": "CheckpointMerging", "init_args": ring}
    Path("ring.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    command = ["fit", "--config", "recipe.yaml", "--config", "ring.yaml", "--run_dir", "first"]
    assert main(command) == 0
    return Path("first")


def fit(run_dir: str, *arguments: str, steps: int = 1) -> int:
    # Without a rate the weights stay what they were at the start.
    command = ["fit", "--config", "recipe.yaml", "--run_dir", run_dir, *arguments]
    command += ["--model.optimizer.init_args.lr", "0", "--trainer.max_steps", str(steps)]
    return main(command)


def weights(run_dir: str) -> dict:
    path = Path(run_dir) / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


def mean_of(trained: Path, steps: list[int]) -> torch.Tensor:
    name = "merging/ring/step_{:08d}/rank_00000.safetensors"
    files = [load_file(trained / name.format(step)) for step in steps]
    return torch.stack([tensors["net.0.weight"].double() for tensors in files]).mean(0)


def test_a_run_starts_from_the_merge_of_another_run(trained):
    init = ["--init_from_merge.inputs", "[first]", "--init_from_merge.last", "3"]
    assert fit("second", *init) == 0
    expected = mean_of(trained, [12, 18, 24])
    assert torch.allclose(weights("second")["net.0.weight"].double(), expected, atol=1e-7)
    run = json.loads(Path("second/metrics.json").read_text())["run"]
    assert run["initial_weights"]["inputs"] == ["first"]


def test_a_recipe_says_so_and_a_preempted_run_goes_on_with_its_own_weights(trained, capsys):
    Path("init.yaml").write_text("init_from_merge: {inputs: ['first/merging/ring/*'], last: 2}")
    assert fit("second", "--config", "init.yaml", "--ckpt_path", "auto") == 0
    started = weights("second")["net.0.weight"]
    assert torch.allclose(started.double(), mean_of(trained, [18, 24]), atol=1e-7)
    Path("second/init_from_merge.safetensors").unlink()
    assert fit("second", "--config", "init.yaml", "--ckpt_path", "auto", steps=2) == 0
    assert "--init_from_merge is for the start" in capsys.readouterr().err
    assert torch.equal(weights("second")["net.0.weight"], started)


def test_a_test_after_the_fit_is_of_the_trained_weights(project):
    recipe = ["--config", "recipe.yaml", "--data.init_args.noise", "0"]
    fit = ["fit", *recipe, "--trainer.max_steps"]
    assert main([*fit, "2", "--run_dir", "first"]) == 0
    start = ["--init_from", "first/checkpoints/last.ckpt", "--test_after_fit", "true"]
    assert main([*fit, "20", "--run_dir", "second", *start]) == 0
    tested = json.loads(Path("second/metrics.json").read_text())
    best = str(Path("second/checkpoints") / Path(tested["fit"]["best_checkpoint"]).name)
    assert main(["test", *recipe, "--run_dir", "third", "--ckpt_path", best]) == 0
    expected = json.loads(Path("third/metrics.json").read_text())["test"]["test/loss"]
    assert tested["test"]["test/loss"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--init_from_merge.inputs", "[nowhere]"], "nowhere"),
        (
            ["--init_from_merge.inputs", "[first]", "--init_from", "first/checkpoints/last.ckpt"],
            "--init_from and --init_from_merge: give one",
        ),
        (
            ["--init_from_merge.inputs", "[first]", "--ckpt_path", "first/checkpoints/last.ckpt"],
            "--init_from_merge takes weights only, --ckpt_path a whole run",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(trained, capsys, arguments, message):
    assert fit("second", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not Path("second").exists()


def test_tied_weights_of_a_safetensors_file(project):
    """Such a file holds a shared tensor once, under one of its names."""
    recipe = {"base": "recipe.yaml", "model": {"class_path": "normed.Normed"}}
    Path("tied.yaml").write_text(yaml.safe_dump(recipe))
    ring = {"every_n_train_steps": 6, "save_merged": "last", "save_format": "safetensors"}
    callback = {"class_path": "CheckpointMerging", "init_args": ring}
    Path("ring.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    assert (
        main(["fit", "--config", "tied.yaml", "--config", "ring.yaml", "--run_dir", "first"]) == 0
    )
    (merged,) = Path("first/merging").glob("*.safetensors")
    assert {"shared", "tied.weight"} & load_file(merged).keys() == {"shared"}
    command = ["fit", "--config", "tied.yaml", "--run_dir", "next", "--init_from", str(merged)]
    assert main([*command, "--model.lr", "0", "--trainer.max_steps", "1"]) == 0
    assert torch.equal(weights("next")["tied.weight"], load_file(merged)["shared"])
