"""The rules of the house: which folder may import which, and tables that must match the code."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
import tenfold
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from tenfold.recipes.classes import CLASSES
from torch.optim.lr_scheduler import LRScheduler

ROOT = Path(tenfold.__file__).parent
BELOW = {
    "kernels": set(),
    "modules": {"kernels"},
    "datamodules": {"modules", "kernels"},
    "callbacks": {"modules", "kernels"},
    "recipes": {"callbacks", "datamodules", "modules", "kernels"},
}
SOURCES = [path for folder in BELOW for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> list[tuple[int, str, bool]]:
    """(line, imported module from the package's root, whether it is written relatively)."""
    parents = path.relative_to(ROOT).parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*parents[: len(parents) - node.level + 1], *(node.module or "").split(".")]
            base = [part for part in base if part]
            names = [".".join(base)] if base else [alias.name for alias in node.names]
            found += [(node.lineno, name, True) for name in names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, node.module or "", False))
        elif isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, False) for alias in node.names]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_are_relative(path):
    room = path.relative_to(ROOT).parts[0]
    for line, name, relative in imports(path):
        assert not name.startswith("tenfold"), f"{path}:{line}: write a relative import"
        if relative:
            target = name.split(".")[0]
            allowed = {room, "__version__"} | BELOW[room]
            assert target in allowed, f"{path}:{line}: {room} must not import {target}"


def test_datamodules_import_only_representations_from_modules():
    networks = {"language_model", "point_cloud", "set_mixer", "aggregation"}
    for path in (ROOT / "datamodules").rglob("*.py"):
        for line, name, relative in imports(path):
            parts = name.split(".")
            assert not (relative and parts[0] == "modules" and parts[1] in networks), (path, line)


def test_the_table_of_short_names_is_complete_and_true():
    bases = (LightningModule, LightningDataModule, Callback, LRScheduler)
    plumbing = {"RunCheckpoint", "RunRecorder", "StopAfterOneBatch", "InitialWeights"}
    plumbing |= {"TrainingSchedule"}
    found = {}
    for module in pkgutil.walk_packages([str(ROOT)], "tenfold."):
        if module.name.split(".")[1] not in BELOW:
            continue
        for name, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            is_own = cls.__module__ == module.name and not inspect.isabstract(cls)
            if is_own and issubclass(cls, bases) and name not in plumbing:
                found[name] = module.name
    for name, module in CLASSES.items():
        cls = getattr(importlib.import_module(module), name)
        if cls.__module__ == found.get(name, cls.__module__):
            found[name] = module
    assert found == CLASSES
