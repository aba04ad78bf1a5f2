"""What a configuration, a checkpoint or the environment of a user must not bring about."""

import os
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from tenfold.recipes.cli import main

FIT = ("fit", "--config", "recipe.yaml", "--trainer.max_steps=2", "--run_dir=run")


class Malicious:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return (os.system, ("touch executed",))


@pytest.fixture
def checkpoint(project) -> Path:
    """A checkpoint of a run, with something malicious inside."""
    assert main([*FIT]) == 0
    path = Path("run/checkpoints/last.ckpt")
    content = torch.load(path, weights_only=True)
    torch.save({**content, "extra": Malicious()}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    return path


@pytest.mark.parametrize(
    "command",
    [
        ["fit", "--config", "recipe.yaml", "--run_dir", "run", "--ckpt_path", "last"],
        ["fit", "--config", "recipe.yaml", "--init_from", "run/checkpoints/last.ckpt"],
        ["test", "--run_dir", "run", "--ckpt_path", "run/checkpoints/last.ckpt"],
        ["merge", "run/checkpoints/last.ckpt", "--out", "merged.safetensors"],
        ["export", "--run_dir", "run", "--format", "fake", "--out", "out"],
    ],
    ids=["resume", "init_from", "test", "merge", "export"],
)
def test_a_malicious_checkpoint_is_refused_in_one_line(checkpoint, capsys, command):
    capsys.readouterr()
    assert main(command) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "last.ckpt" in errors[0]
    assert "only tensors and plain types" in errors[0] or "could run code" in errors[0]
    assert not Path("executed").exists()
    torch.load(checkpoint, weights_only=False)
    assert Path("executed").exists()  # it is a real one


@pytest.mark.parametrize(
    "harm",
    [
        {"trainer": {"callbacks": [{"class_path": "os.system", "init_args": {"command": "X"}}]}},
        {
            "trainer": {
                "callbacks": [{"class_path": "subprocess.Popen", "init_args": {"args": "X"}}]
            }
        },
        {"trainer": {"logger": {"class_path": "os.system", "init_args": {"command": "X"}}}},
        {"model": {"class_path": "os.system", "init_args": {"command": "X"}}},
        {"model": {"init_args": {"optimizer": {"class_path": "os.system", "init_args": {"a": 1}}}}},
        {"model": {"init_args": {"optimizer": "os.system"}}},
        {"data": {"class_path": "subprocess.call", "init_args": {"args": "X"}}},
    ],
)
def test_a_configuration_calls_only_classes_of_the_kind_that_is_expected(project, capsys, harm):
    text = yaml.safe_dump(harm).replace("X", "touch executed")
    Path("harm.yaml").write_text(text)
    assert main([*FIT, "--config", "harm.yaml"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert not Path("executed").exists()
    assert not Path("run").exists()


def test_yaml_tags_build_nothing(project, capsys):
    Path("tag.yaml").write_text("trainer: !!python/object/apply:os.system ['touch executed']\n")
    assert main([*FIT, "--config", "tag.yaml"]) == 2
    assert "not valid YAML" in capsys.readouterr().err
    assert not Path("executed").exists()


SECRETS = {
    "OPENAI_API_KEY": "sk-canary-1",
    "HF_TOKEN": "hf_canary2",
    "WANDB_API_KEY": "canary3",
    "MY_PASSWORD": "canary4",
}


def test_nothing_of_the_environment_reaches_a_file_or_the_output(project, monkeypatch, capfd):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    assert main([*FIT]) == 0
    assert main(["submit", "--config", "recipe.yaml", "--run_dir", "other", "--dry-run"]) == 0
    printed = capfd.readouterr()
    texts = [printed.out.encode(), printed.err.encode()]
    texts += [path.read_bytes() for path in Path().rglob("*") if path.is_file()]
    assert len(texts) > 10
    for value in SECRETS.values():
        assert not any(value.encode() in text for text in texts)


@pytest.mark.parametrize(
    "given",
    [
        ["--model.api_key=sk-canary"],
        ["--model.backend", '{"init_args": {"api_key": "sk-canary"}}'],
        ["--trainer.logger.tracking_uri=https://me:sk-canary@example.org"],
        ["--config", "secret.yaml"],
    ],
)
@pytest.mark.parametrize("command", ["fit", "submit"])
def test_a_secret_in_a_configuration_is_refused_and_not_repeated(project, capsys, given, command):
    Path("secret.yaml").write_text("data:\n  init_args:\n    password: sk-canary\n")
    if command == "submit":
        if given[0] != "--config":
            key = given[0].removeprefix("--").partition("=")[0]
            given = ["--override", yaml.safe_dump({key: given[-1].partition("=")[2] or given[-1]})]
        arguments = ["submit", "--config", "recipe.yaml", *given, "--dry-run", "--run_dir=run"]
    else:
        arguments = [*FIT, *given]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert "a secret must not stand in a configuration" in printed.err
    assert "canary" not in printed.out + printed.err
    assert not Path("run").exists()
