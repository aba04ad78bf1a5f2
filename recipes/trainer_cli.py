"""`fit`, `validate`, `test`, `predict` and `check`: Lightning's command line with house rules.

What differs from plain LightningCLI: one run directory per run with everything in it, exact
resume, checkpoints that never override flags, and errors of one line.
"""

import logging
import os
import shutil
import signal
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden

from ..callbacks.checkpointing import (
    LAST,
    AtomicCheckpointIO,
    RunCheckpoint,
    newest_intact_checkpoint,
    read_hyperparameters,
    require_intact,
)
from ..callbacks.figures import FigureWriter
from ..callbacks.progress_lines import ProgressLines
from ..callbacks.random_state import RandomState
from ..callbacks.rank_watch import RankWatch
from ..callbacks.records import RecordWriter
from ..callbacks.run_recorder import RunRecorder, read_metrics
from ..callbacks.stop_signals import STOP_SIGNALS
from ..modules.files import atomic_write
from .arguments import Arguments
from .catalogue import RECIPES
from .errors import OneLineErrors, dropped_settings, note, rank_of_process
from .failures import end_on_failure
from .initial_weights import MERGED_FILE, InitialWeights, MergedInit
from .run_directory import choose_run_dir, claim, hand_on, lock
from .slurm_job import is_task, job_id, requeue

# Settings that belong to one start of a run and not to its recipe.
START_OPTIONS = (
    "base",
    "run_dir",
    "ckpt_path",
    "init_from",
    "init_from_merge",
    "overwrite",
    "weights_only",
    "verbose",
)

# Said to everybody, of use to nobody here: loaders are sized by the recipe.
UNHELPFUL_WARNINGS = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*`srun` command is available.*",
    ".*isinstance\\(treespec, LeafSpec\\).*",
)

MAX_DEPTH = 2  # slashes in the name of a metric that is printed at the end: test/er/gaussian

# What `check` changes in a recipe's trainer: nothing is written, one batch is enough.
CHECK = {
    "logger": False,
    "enable_checkpointing": False,
    "limit_val_batches": 1,
    "limit_test_batches": 1,
    "num_sanity_val_steps": 0,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class EventLogger(TensorBoardLogger):
    """TensorBoard events, on disk as soon as they are logged: a kill loses none."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(save_dir=run_dir, name="", version="")

    def save(self) -> None:
        """Flushes the events; the configuration is in config.yaml."""
        self.experiment.flush()


class RecipeCLI(LightningCLI):
    """LightningCLI in subclass mode, inside a run directory.

    Args:
        arguments: The command line, prepared by `read_arguments`.
        command: `fit`, `validate`, `test`, `predict` or `check`.
        resources: Where to put what must be closed when the command has ended.
    """

    def __init__(self, arguments: Arguments, command: str, resources: ExitStack) -> None:
        self.resources = resources
        self.arguments = arguments
        self.command = command
        self.run_dir: Path | None = None
        self._is_new_run = False
        bases = (OneLineErrors, LightningArgumentParser)
        parser_class = type("RecipeParser", bases, {"settings": arguments.settings})
        subcommand = "fit" if command == "check" else command
        super().__init__(
            args=[subcommand, *arguments.argv],
            parser_class=parser_class,
            parser_kwargs={"allow_abbrev": False},
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            auto_configure_optimizers=False,
            seed_everything_default=0,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "RecipeCLI":
        """There is one: weight averaging copies a module, whose optimizer's factory leads here."""
        return self

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what every run has: its directory, its checkpoints, where it starts from."""
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_argument("--base", type=str | list[str] | None, help="Recipe(s) to build upon.")
        parser.add_argument("--run_dir", type=Path | None, help="Directory of this run.")
        parser.add_argument(
            "--init_from", type=Path | None, help="Checkpoint to take the weights from, only those."
        )
        parser.add_argument(
            "--init_from_merge",
            type=MergedInit | None,
            help="Checkpoints of another run to merge and take the weights from.",
        )
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="Replace results in --run_dir."
        )
        parser.add_argument(
            "--test_after_fit",
            type=bool,
            default=False,
            help="Test the best checkpoint when training has ended.",
        )
        if self.command == "check":
            parser.add_argument(
                "--meta", type=bool, default=False, help="Build the network without memory."
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, then names settings that a later choice of class has made void."""
        self.config = parser.parse_args(args)
        self.subcommand = self.config.subcommand
        for line in dropped_settings(self.arguments.settings, self._plain_config()):
            note(line)

    def _parse_ckpt_path(self) -> None:
        # Private: Lightning would let the hyperparameters stored in a checkpoint override YAML and
        # flags here; tests/recipes/test_resume.py notices when it moves.
        return

    def before_instantiate_classes(self) -> None:
        """Chooses the run directory and the checkpoint before anything is built."""
        config = self.config[self.subcommand]
        if self.command == "check":
            fill_placeholders(config.trainer, {"recipes": str(RECIPES)})
            return
        named = Path(config.run_dir) if config.run_dir is not None else None
        self.run_dir = choose_run_dir(named, self.arguments.recipe, config.ckpt_path, os.environ)
        hand_on(self.run_dir)
        given = config.ckpt_path
        config.ckpt_path = self._find_checkpoint(given)
        self._settle_initial_weights(config, given)
        if config.weights_only is None:
            config.weights_only = True
        if "verbose" in config:
            config.verbose = False  # `summary` says it
        if rank_of_process() == 0:
            resume = config.ckpt_path is not None
            self._is_new_run = not any(self.run_dir.glob("*"))
            if self.command == "fit":
                self.resources.callback(os.close, lock(self.run_dir))
            path = claim(self.run_dir, self.command, resume, config.overwrite)
            save_config(self._plain_config(), path)
            if config.init_from_merge is not None:
                self._merge_initial_weights(MergedInit(**config.init_from_merge.as_dict()))
        places = {"run_dir": str(self.run_dir), "recipes": str(RECIPES)}
        fill_placeholders(config.trainer, places)

    def _settle_initial_weights(self, config: Namespace, ckpt_path: str | None) -> None:
        """Lets a run that goes on keep its own weights; refuses contradictions."""
        given = [n for n in ("init_from", "init_from_merge") if config[n] is not None]
        if len(given) == 2:
            raise ValueError("--init_from and --init_from_merge: give one")
        if given and config.ckpt_path is not None:
            if ckpt_path not in ("auto", "last"):
                raise ValueError(
                    f"--{given[0]} takes weights only, --ckpt_path a whole run: give one"
                )
            note(f"--{given[0]} is for the start: the run goes on from {config.ckpt_path}")
            config[given[0]] = None

    def _merge_initial_weights(self, init: MergedInit) -> None:
        assert self.run_dir is not None
        try:
            init.write(self.run_dir)
        except ValueError:
            if self._is_new_run:
                shutil.rmtree(self.run_dir)
            raise

    def _plain_config(self) -> dict[str, Any]:
        dumped = self.parser.dump(self.config, skip_unset=False, skip_validation=True)
        content: dict[str, Any] = yaml.safe_load(dumped)[self.subcommand]
        return content

    def _find_checkpoint(self, given: str | None) -> str | None:
        """Resolves `--ckpt_path`: auto, last, best or a file."""
        assert self.run_dir is not None
        folder = self.run_dir / "checkpoints"
        best = read_metrics(self.run_dir).get("fit", {}).get("best_checkpoint")
        if given is None and self.command != "fit" and folder.exists():
            given = "best" if best else "last"
        if given is None:
            return None
        if given == "best":
            if best is None:
                raise ValueError(f"--ckpt_path best: {self.run_dir} has no best checkpoint")
            return str(self.run_dir / best)
        if given not in ("auto", "last"):
            if not Path(given).exists():
                raise ValueError(f"--ckpt_path: no file '{given}' (or say auto, last or best)")
            require_intact(Path(given))
            return given
        found = newest_intact_checkpoint(folder)
        if found is None and given == "last":
            raise ValueError(f"--ckpt_path last: no intact checkpoint in {folder}")
        return str(found) if found else None

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer; names what a checkpoint remembers differently."""
        try:
            super().instantiate_classes()
        except Exception:
            if self._is_new_run and self.run_dir is not None:
                shutil.rmtree(self.run_dir)
            raise
        ckpt_path = self.config[self.subcommand].ckpt_path
        if ckpt_path is not None and self.command != "check":
            note(f"weights and state from {ckpt_path}")
            for line in hyperparameter_differences(Path(ckpt_path), self.model):
                note(line)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the Trainer with the callbacks, the logger and the checkpoint writer of a run."""
        config = self.config_init[self.subcommand]
        trainer = config.trainer
        if self.command == "check":
            if config.meta:
                return Trainer(accelerator="cpu", devices=1, logger=False, barebones=True)
            folder = self.resources.enter_context(TemporaryDirectory())
            ours = {**CHECK, "default_root_dir": folder}
            return self._instantiate_trainer({**trainer, **ours}, [StopAfterOneBatch()])
        callbacks: list[Callback] = [FigureWriter(), RecordWriter()]
        if not any(isinstance(given, RankWatch) for given in trainer.callbacks or []):
            callbacks.append(RankWatch())
        assert self.run_dir is not None
        if config.init_from is not None:
            callbacks.append(InitialWeights(config.init_from))
        if config.init_from_merge is not None:
            merged = self.run_dir / MERGED_FILE
            callbacks.append(InitialWeights(merged, config.init_from_merge))
        if trainer.logger in (None, True):
            trainer.logger = EventLogger(self.run_dir) if self.command == "fit" else False
        is_terminal = sys.stdout.isatty()
        if trainer.enable_progress_bar is not False and not is_terminal:
            callbacks.append(ProgressLines())
        if trainer.logger:
            callbacks.append(LearningRateMonitor(logging_interval="step"))
        # After the others: a command counts as finished when all its files are written, and no
        # callback's start touches a resumed run's random state.
        callbacks += [RunRecorder(config.seed_everything), RandomState()]
        if self.command == "fit":
            callbacks.append(config.checkpoint)
        plugins = trainer.plugins or []
        plugins = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        if not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
            plugins += slurm_environment()
        ours = {
            "plugins": plugins,
            "default_root_dir": str(self.run_dir),
            "enable_checkpointing": self.command == "fit",
            "enable_progress_bar": trainer.enable_progress_bar is not False and is_terminal,
        }
        built = self._instantiate_trainer({**trainer, **ours, **kwargs}, callbacks)
        launched = lambda: getattr(built.strategy.launcher, "procs", [])  # noqa: E731
        self.resources.push(end_on_failure(launched))
        return built

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        try:
            return super()._instantiate_trainer(config, callbacks)
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise ValueError(f"trainer: {error}") from error

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Trains; or, for `check`, runs one batch of each kind, or builds on the meta device."""
        if self.command == "check" and self.config_init[self.subcommand].meta:
            with torch.device("meta"):
                model.configure_model()
            return
        if not is_overridden("training_step", model):
            if self.command != "check":
                name = type(model).__name__
                raise ValueError(f"{name} is not trained: use `tenfold test` or `tenfold predict`")
            self.trainer.test(model, datamodule=self.datamodule, verbose=False)
            return
        try:
            self.trainer.fit(model, **kwargs)
        except SystemExit as stop:  # Lightning's answer to KeyboardInterrupt
            if not self.trainer.interrupted:
                raise
            line = (
                f"stopped after step {self.trainer.global_step}; go on with: "
                f"tenfold fit --run_dir {self.run_dir} --ckpt_path last"
            )
            job = job_id() if is_task() and STOP_SIGNALS.caught != signal.SIGINT else None
            if job and self.trainer.is_global_zero:
                line += f"; {requeue(job)}"
            raise KeyboardInterrupt(line) from stop
        finally:
            STOP_SIGNALS.release()
        config = self.config_init[self.subcommand]
        if config.test_after_fit and self.command == "fit":
            assert self.run_dir is not None
            checkpoints: RunCheckpoint = config.checkpoint
            path = self.run_dir / "checkpoints" / (checkpoints.best_checkpoint or LAST)
            note(f"testing {path}")
            self.trainer.test(
                model,
                datamodule=self.datamodule,
                ckpt_path=path,
                verbose=False,
                weights_only=True,
            )


def slurm_environment() -> list[ClusterEnvironment]:
    """What tells Lightning of the other processes of a SLURM job; nothing outside of one.

    Lightning's own choice takes the shell of a job for one of its tasks. With its own requeueing it
    would also write a file per preemption that no `--ckpt_path` knows.
    """
    if is_task():
        return [SLURMEnvironment(auto_requeue=False)]
    return [LightningEnvironment()] if job_id() else []


class BuildCLI(RecipeCLI):
    """Builds the model and the callbacks of a recipe, and neither data nor Trainer; writes nothing.

    Args:
        arguments: The command line, prepared by `read_arguments`.
    """

    def __init__(self, arguments: Arguments) -> None:
        self.callbacks: list[Callback] = []
        super().__init__(arguments, "fit", ExitStack())

    def before_instantiate_classes(self) -> None:
        """Leaves out what need not be there: data, loggers, accelerators of the run."""
        config = self.config[self.subcommand]
        config.pop("data", None)
        fill_placeholders(config.trainer, {"recipes": str(RECIPES)})
        callbacks = config.trainer.callbacks
        config.trainer = Namespace(callbacks=callbacks)  # type: ignore[no-untyped-call]

    def instantiate_classes(self) -> None:
        """Builds the rest."""
        built = self.parser.instantiate(self.config)[self.subcommand]
        self.model = built.model
        self.callbacks = built.trainer.callbacks or []

    def _run_subcommand(self, subcommand: str) -> None:
        # Private: Lightning runs a command as soon as all is built; tests/recipes/test_export.py
        # notices when it moves.
        return


def run(command: str, arguments: Arguments) -> None:
    """Runs one command and says what came of it.

    Args:
        command: `fit`, `validate`, `test`, `predict` or `check`.
        arguments: The prepared command line.
    """
    for message in UNHELPFUL_WARNINGS:
        warnings.filterwarnings("ignore", message)
    if command != "fit":
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(is_no_advertisement)
    with ExitStack() as resources:
        cli = RecipeCLI(arguments, command, resources)
    if command == "check":
        size = sum(parameter.numel() for parameter in cli.model.parameters())
        print(f"ok: {arguments.recipe} ({size / 1e6:.3g}M parameters)")
    elif cli.trainer.is_global_zero:
        assert cli.run_dir is not None
        tested = command == "fit" and cli.config_init[cli.subcommand].test_after_fit
        for finished in ["fit", "test"] if tested else [command]:
            print(summary(cli.run_dir, finished))


def is_no_advertisement(record: logging.LogRecord) -> bool:
    """Lets pass everything that Lightning logs but its tips to install other products."""
    return "Tip:" not in record.getMessage()


def summary(run_dir: Path, command: str) -> str:
    """The results of a command as lines of text, with what module and data measured of the run."""
    metrics = read_metrics(run_dir)
    measured = {name: value for name, value in metrics["run"].items() if isinstance(value, float)}
    shown = {n: v for n, v in metrics[command].items() if n.count("/") <= MAX_DEPTH}
    lines = [
        f"  {name:<32} {value:.6g}" if isinstance(value, float) else f"  {name:<32} {value}"
        for name, value in {**shown, **measured}.items()
    ]
    if left_out := len(metrics[command]) - len(shown):
        lines.append(f"  and {left_out} finer ones in metrics.json")
    return "\n".join([f"{command}:", *lines, f"run directory: {run_dir}"])


class StopAfterOneBatch(Callback):
    """Ends training after its first batch, so that `check` sees one of each kind."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Asks the trainer to validate and stop."""
        trainer.should_stop = True


def hyperparameter_differences(path: Path, model: LightningModule) -> list[str]:
    """What a checkpoint's hyperparameters say differently from the model that will load it."""
    stored = read_hyperparameters(path)
    current = dict(model.hparams)
    names = sorted(stored.keys() & current.keys() - {"_instantiator"})
    return [
        f"model.{name} is {current[name]} here, {stored[name]} in {path.name}: this run's wins"
        for name in names
        if stored[name] != current[name]
    ]


def save_config(content: dict[str, Any], path: Path) -> None:
    """Writes a run's configuration as a recipe that can be run again."""
    content = {key: value for key, value in content.items() if key not in START_OPTIONS}
    content["trainer"] = {k: v for k, v in content["trainer"].items() if k != "default_root_dir"}
    with atomic_write(path, "w") as file:
        yaml.safe_dump(content, file, sort_keys=False)


def fill_placeholders(value: Any, values: dict[str, str]) -> Any:
    """Replaces `${run_dir}` and the like in every text inside a parsed configuration.

    Args:
        value: The configuration, changed in place where it is a mapping.
        values: What each placeholder stands for.
    """
    if isinstance(value, str):
        for name, text in values.items():
            value = value.replace(f"${{{name}}}", text)
        return value
    if isinstance(value, list):
        return [fill_placeholders(item, values) for item in value]
    if isinstance(value, Namespace | dict):
        for key, item in list(value.items() if isinstance(value, dict) else vars(value).items()):
            value[key] = fill_placeholders(item, values)
    return value
