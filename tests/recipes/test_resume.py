"""A killed run, gone on with, ends bit for bit as if nothing had happened: through the command
line, with real signals."""

import json
import random
import signal
from pathlib import Path

import pytest
import torch
import yaml
from comparison import assert_same, last_checkpoint, logged
from tenfold.callbacks.checkpointing import is_intact
from tenfold.recipes.cli import main

FIT = ("fit", "--config", "recipe.yaml", "--data.num_workers", "2", "--trainer.max_steps", "60")


def overlay(name: str, **init_args: int) -> str:
    path = Path(f"{name.lower()}.yaml")
    callback = f"{{class_path: toy.{name}, init_args: {init_args}}}"
    path.write_text(f"trainer:\n  callbacks+:\n    - {callback}\n")
    return str(path)


def test_kill_and_resume_is_exact(project, tenfold):
    """Dropout, noise drawn in two workers, validation inside the epoch; killed at a random step of
    the middle of an epoch and at the last step of another one (10 batches each)."""
    assert main([*FIT, "--run_dir", "whole"]) == 0
    steps = [random.choice([13, 14, 15, 16, 17, 18, 22, 25, 26, 27]), 50]
    for step in steps:
        run = ("--run_dir", f"killed_{step}")
        killed = tenfold(*FIT, *run, "--config", overlay("Kill", step=step))
        assert killed.returncode == -9, killed.stderr
        assert last_checkpoint(run[1])["global_step"] < 60
        assert main([*FIT, *run, "--ckpt_path", "last"]) == 0
        assert_same(last_checkpoint("whole"), last_checkpoint(run[1]))
        assert_same(logged("whole"), logged(run[1]))
        assert (project / run[1] / "config.resume_1.yaml").is_file()
    metrics = [json.loads((project / d / "metrics.json").read_text()) for d in ("whole", run[1])]
    for content in metrics:
        content["fit"].pop("wall_time_s")
    assert metrics[0] == metrics[1]


def test_ctrl_c_saves_says_how_to_go_on_and_resumes_exactly(project, tenfold):
    assert main([*FIT, "--run_dir", "whole"]) == 0
    run = ("--run_dir", "stopped")
    stopped = tenfold(*FIT, *run, "--config", overlay("Interrupt", step=7))
    assert stopped.returncode == 130, stopped.stderr
    assert "tenfold fit --run_dir stopped --ckpt_path last" in stopped.stderr
    assert last_checkpoint("stopped")["global_step"] == 8
    assert not (project / "stopped" / "metrics.json").exists()
    # As printed: the configuration comes from the run, here without its interruption.
    config = project / "stopped" / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["trainer"]["callbacks"] = None
    config.write_text(yaml.safe_dump(content))
    assert main(["fit", "--run_dir", "stopped", "--ckpt_path", "last"]) == 0
    assert_same(last_checkpoint("whole"), last_checkpoint("stopped"))
    assert_same(logged("whole"), logged("stopped"))


def test_a_run_stopped_twice_logs_every_step_as_a_whole_one_does(project):
    """Before the values of step 7 are logged, and after the validation of step 8."""
    assert main([*FIT, "--run_dir", "whole"]) == 0
    for step in (6, 7):
        stop = overlay("Interrupt", step=step, number=int(signal.SIGUSR1))
        run = [*FIT, "--run_dir", "run", "--ckpt_path", "auto", "--config", stop]
        assert main(run) == 128 + signal.SIGUSR1
    assert main([*FIT, "--run_dir", "run", "--ckpt_path", "auto"]) == 0
    assert_same(logged("whole"), logged("run"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_of_a_cluster_save_and_stop_as_ctrl_c_does(project, capsys, number):
    stop = overlay("Interrupt", step=7, number=int(number))
    assert main([*FIT, "--run_dir", "stopped", "--config", stop]) == 128 + number
    error = capsys.readouterr().err
    assert f"{number.name}: finishing this step, then saving ..." in error
    assert "tenfold fit --run_dir stopped --ckpt_path last" in error
    assert last_checkpoint("stopped")["global_step"] == 8


@pytest.mark.parametrize("stopped", [False, True])
def test_signals_are_as_before_when_training_has_ended(project, stopped):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    options = ["--config", overlay("Interrupt", step=1)] if stopped else []
    code = main([*FIT[:3], "--trainer.max_steps", "3", "--run_dir", "run", *options])
    assert code == (130 if stopped else 0)
    assert [signal.getsignal(number) for number in numbers] == before


def test_auto_starts_fresh_then_goes_on(project, capsys):
    fit = ["fit", "--config", "recipe.yaml", "--run_dir", "run", "--ckpt_path", "auto"]
    assert main([*fit, "--trainer.max_steps", "5"]) == 0
    assert main([*fit, "--trainer.max_steps", "9"]) == 0
    assert "weights and state from run/checkpoints/last.ckpt" in capsys.readouterr().err
    assert last_checkpoint("run")["global_step"] == 9


def test_last_means_the_newest_run_of_the_recipe(project):
    for steps in ("2", "3"):
        assert main(["fit", "--config", "recipe.yaml", "--trainer.max_steps", steps]) == 0
    resume = ["fit", "--config", "recipe.yaml", "--ckpt_path", "last", "--trainer.max_steps", "6"]
    assert main(resume) == 0
    runs = sorted((project / "runs" / project.name / "recipe").iterdir())
    assert [run.name for run in runs] == ["version_0", "version_1"]
    assert last_checkpoint(str(runs[1]))["global_step"] == 6
    assert last_checkpoint(str(runs[0]))["global_step"] == 2


@pytest.mark.parametrize("damage", ["truncated", "garbage", "one bit"])
def test_a_damaged_checkpoint_is_refused_and_the_newest_intact_one_named(damage, project, capsys):
    fit = ["fit", "--config", "recipe.yaml", "--run_dir", "run"]
    assert main([*fit, "--trainer.max_steps", "8"]) == 0
    last = project / "run" / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    last.unlink()
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "garbage":
        content = bytearray(b"not a checkpoint")
    else:
        content[content.index(b"global_step") + 400] ^= 1
    last.write_bytes(content)
    capsys.readouterr()
    assert main([*fit, "--ckpt_path", "run/checkpoints/last.ckpt"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "last.ckpt is damaged" in error
    assert "the newest intact one is run/checkpoints/step_00000008.ckpt" in error
    with pytest.warns(UserWarning, match="is damaged"):
        assert main([*fit, "--ckpt_path", "auto", "--trainer.max_steps", "10"]) == 0
    assert last_checkpoint("run")["global_step"] == 10
    assert last.with_name("last.ckpt.damaged").read_bytes() == content
    assert is_intact(last.with_name("previous.ckpt"))


def test_a_malicious_checkpoint_is_refused(project, capsys):
    class Malicious:
        def __reduce__(self):
            return (Path.touch, (Path("owned"),))

    torch.save({"state_dict": Malicious()}, "evil.ckpt")
    fit = ["fit", "--config", "recipe.yaml", "--ckpt_path", "evil.ckpt"]
    assert main(fit) == 2
    assert "evil.ckpt holds Python objects" in capsys.readouterr().err
    assert not Path("owned").exists()


def test_flags_win_over_hyperparameters_in_the_checkpoint_and_say_so(project, capsys):
    fit = ["fit", "--config", "recipe.yaml", "--run_dir", "run", "--ckpt_path", "auto"]
    assert main([*fit, "--trainer.max_steps", "2"]) == 0
    capsys.readouterr()
    assert main([*fit, "--trainer.max_steps", "4", "--model.dropout", "0.5"]) == 0
    note = "model.dropout is 0.5 here, 0.2 in last.ckpt: this run's wins"
    assert capsys.readouterr().err.count(note) == 1
    config = yaml.safe_load((project / "run" / "config.resume_1.yaml").read_text())
    assert config["model"]["init_args"]["dropout"] == 0.5


def test_resuming_a_finished_run_keeps_its_results(project):
    fit = ["fit", "--config", "recipe.yaml", "--run_dir", "run", "--ckpt_path", "auto"]
    assert main(fit) == 0
    before = (project / "run" / "metrics.json").read_text()
    assert main(fit) == 0
    assert (project / "run" / "metrics.json").read_text() == before


def test_a_language_model_resumes_exactly(project):
    """Dropout in attention, a schedule, loss curves; stopped in the middle of an epoch."""
    text = Path("text")
    text.mkdir()
    for i in range(200):
        (text / f"{i}.txt").write_text(f"document {i} counts {list(range(i, i + 9))}\n" * 4)
    Path("small.yaml").write_text(
        """
base: language_model/quickstart
model:
  init_args:
    config: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2,
             num_key_value_heads: 1, vocab_size: 256, attention_dropout: 0.2}
    lr_scheduler: {class_path: WarmupStableDecay, init_args: {num_training_steps: 24}}
data: {init_args: {files: text, sequence_length: 16, batch_size: 8, num_workers: 1}}
trainer: {accelerator: cpu, val_check_interval: 5, limit_val_batches: 2, log_every_n_steps: 3}
"""
    )
    fit = ["fit", "--config", "small.yaml"]
    assert main([*fit, "--run_dir", "whole", "--trainer.max_steps", "24"]) == 0
    assert main([*fit, "--run_dir", "parts", "--trainer.max_steps", "13"]) == 0
    resume = ["--trainer.max_steps", "24", "--ckpt_path", "last"]
    assert main([*fit, "--run_dir", "parts", *resume]) == 0
    assert_same(last_checkpoint("whole"), last_checkpoint("parts"))
    whole, parts = logged("whole"), logged("parts")
    for values in (whole, parts):
        del values["train/tokens_per_second"]
    assert_same(whole, parts)
