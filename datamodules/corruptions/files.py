"""A split of shapes as the files of ModelNet40-C: written in parallel, whole or absent, resumable.

    data_<corruption>_<severity>.npy   (n, M, 3) float32
    data_original.npy                  (n, N, 3) float32, the clean clouds
    label.npy                          (n, 1) int64
    manifest.json                      what made them, and the SHA-256 of each

A file that the manifest knows and whose hash is right is not made again, so that the same command
goes on where it was stopped, and another adds corruptions. Every cloud is a function of (seed,
corruption, severity, index), hence the number of processes changes only the speed.

Shapes: n shapes, N points asked for, M points of a corrupted cloud.
"""

import hashlib
import io
import json
import multiprocessing
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ...modules.corruption_names import NEEDS_MESH
from ...modules.files import atomic_write, sha256_of_file, write_json
from .ray_casting import UpAxis, load_mesh
from .suite import check_corruption, corrupt, corruption_rng, naming, shared_subset

if TYPE_CHECKING:
    from ..point_clouds.shapes import ShapeSet

MANIFEST = "manifest.json"
FORMAT = 1
# Shapes that a process does at a time: few enough that Ctrl-C, which lets it finish them, is quick.
CHUNK, MESH_CHUNK = 64, 4
Cell = tuple[str, int]
Clouds = NDArray[np.float32]


@dataclass(frozen=True)
class Chunk:
    """Some consecutive shapes and the cells of the suite to make of them, for one process.

    Attributes:
        points: File of all clouds, (n, P, 3), which a process maps; to send them takes as long as
            simple corruptions do.
        meshes: Mesh files, c of them, or None.
        names: Names of the shapes, for messages.
        first: Number of the first shape in its split.
        cells: Corruptions and severities.
        seed: Of the suite.
        num_points: N.
        up: Vertical axis.
    """

    points: Path
    meshes: Sequence[Path] | None
    names: Sequence[str]
    first: int
    cells: Sequence[Cell]
    seed: int
    num_points: int
    up: UpAxis


@dataclass(frozen=True)
class Written:
    """What a call has done.

    Attributes:
        made: Files that were written.
        kept: Files of an earlier call that were intact.
        num_clouds: Corrupted clouds made.
        seconds: Time it took to make and write them.
    """

    made: list[str]
    kept: list[str]
    num_clouds: int
    seconds: float


def write_suite(
    shapes: "ShapeSet",
    out: Path,
    cells: Sequence[Cell],
    *,
    source: str,
    seed: int = 2021,
    num_points: int = 1024,
    jobs: int = 1,
    overwrite: bool = False,
    left_out: dict[str, str] | None = None,
    say: Callable[[str], None] = print,
    advance: Callable[[int], None] = lambda num_clouds: None,
) -> Written:
    """Writes corrupted copies of a split.

    Args:
        shapes: The clean split; its meshes if cells need them.
        out: Folder to write.
        cells: Corruptions and severities. Those that need meshes are made together, so that each
            mesh is read once.
        source: What the manifest calls the split.
        seed: Seed of the suite.
        num_points: N points of each cloud that are corrupted.
        jobs: Processes.
        overwrite: Whether to delete the files of an earlier call with other settings.
        left_out: Corruptions that are not made and why, for the manifest.
        say: Takes a line for each file.
        advance: Takes the number of clouds made since the last call.

    Returns:
        What was done.

    Raises:
        ValueError: The folder holds files of other settings or of another origin; a shape cannot
            be used, with its name.
        KeyboardInterrupt: Stopped by the user; only whole files are left.
    """
    for corruption, severity in cells:
        check_corruption(corruption, severity)
        shared_subset(seed, corruption, severity, shapes.points.shape[1], num_points)
        if corruption in NEEDS_MESH and shapes.meshes is None:
            raise ValueError(f"{corruption} requires meshes, and {source} has points only")
    settings = {
        "format": FORMAT,
        "seed": seed,
        "num_points": num_points,
        "up": shapes.up,
        "data_sha256": shapes.data_hash,
    }
    files = _open_folder(out, settings, overwrite)
    manifest = {
        **settings,
        "source": source,
        "num_shapes": len(shapes),
        "class_names": list(shapes.class_names),
        "versions": installed_versions(),
        "left_out": left_out or {},
        "skipped_shapes": list(shapes.skipped),
        "files": files,
    }
    kept = [name for name in map(file_name, cells) if _is_intact(out / name, files)]
    made: list[str] = []

    def write(name: str, array: NDArray[Any]) -> None:
        buffer = io.BytesIO()
        np.save(buffer, array)
        content = buffer.getvalue()
        # The manifest goes first: stopped between the two, it knows of a file that is not there,
        # which is made again, and not the other way round.
        files[name] = {
            "shape": list(array.shape),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        write_json(out / MANIFEST, manifest)
        with atomic_write(out / name) as file:
            file.write(content)
        made.append(name)

    write_json(out / MANIFEST, manifest)
    for name, array in _clean_files(shapes, seed, num_points).items():
        if not _is_intact(out / name, files):
            write(name, array)
    missing = [cell for cell in cells if file_name(cell) not in kept]
    begun = last = time.monotonic()
    num_clouds = 0
    with tempfile.TemporaryDirectory() as folder, _runner(jobs) as run:
        points = Path(folder) / "points.npy"
        np.save(points, shapes.points)
        groups = _groups(missing)
        streams = [run(_chunks(shapes, points, group, seed, num_points)) for group in groups]
        for group, stream in zip(groups, streams, strict=True):
            parts: list[list[Clouds]] = []
            for part in stream:
                parts.append(part)
                advance(sum(map(len, part)))
            for cell, clouds in zip(group, zip(*parts, strict=True), strict=True):
                write(file_name(cell), np.concatenate(clouds))
            num_clouds += len(group) * len(shapes)
            now = time.monotonic()
            rate = len(group) * len(shapes) / (now - last)
            last = now
            for cell in group:
                shape = tuple(files[file_name(cell)]["shape"])
                say(f"{file_name(cell)}  {shape}  {rate:,.0f} clouds/s")
    return Written(made, kept, num_clouds, time.monotonic() - begun)


def file_name(cell: Cell) -> str:
    """The name of a cell's file in the layout of ModelNet40-C."""
    return f"data_{cell[0]}_{cell[1]}.npy"


def corrupt_chunk(chunk: Chunk) -> list[Clouds]:
    """Makes the clouds of a chunk: one array (c, M, 3) for each of its cells.

    Raises:
        ValueError: A shape cannot be used, with its name.
    """
    stored = np.load(chunk.points, mmap_mode="r")
    subsets = [
        shared_subset(chunk.seed, *cell, stored.shape[1], chunk.num_points) for cell in chunk.cells
    ]
    needs_mesh = any(corruption in NEEDS_MESH for corruption, _ in chunk.cells)
    clouds: list[list[Clouds]] = [[] for _ in chunk.cells]
    for k, name in enumerate(chunk.names):
        points = stored[chunk.first + k]
        path = chunk.meshes[k] if needs_mesh and chunk.meshes is not None else None
        with naming(f"shape {chunk.first + k} ({name if path is None else path})"):
            mesh = None if path is None else load_mesh(path)
            for made, cell, subset in zip(clouds, chunk.cells, subsets, strict=True):
                rng = corruption_rng(chunk.seed, *cell, chunk.first + k)
                made.append(corrupt(points, *cell, rng, chunk.num_points, mesh, subset, chunk.up))
    return [np.stack(made) for made in clouds]


def installed_versions() -> dict[str, str]:
    """The versions of what the clouds depend on."""
    versions = {"tenfold": __version__, "python": platform.python_version()}
    for package in ("numpy", "scipy", "trimesh", "embreex"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # an extra that only meshes need
            continue
    return versions


def _groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that are made together: those that need meshes, every other one by itself."""
    meshes = [cell for cell in cells if cell[0] in NEEDS_MESH]
    alone = [[cell] for cell in cells if cell[0] not in NEEDS_MESH]
    return [*alone, meshes] if meshes else alone


def _chunks(
    shapes: "ShapeSet", points: Path, cells: Sequence[Cell], seed: int, num_points: int
) -> list[Chunk]:
    """Cuts the split into chunks."""
    size = MESH_CHUNK if cells[0][0] in NEEDS_MESH else CHUNK
    return [
        Chunk(
            points=points,
            meshes=None if shapes.meshes is None else shapes.meshes[first : first + size],
            names=shapes.names[first : first + size],
            first=first,
            cells=cells,
            seed=seed,
            num_points=num_points,
            up=shapes.up,
        )
        for first in range(0, len(shapes), size)
    ]


def _clean_files(shapes: "ShapeSet", seed: int, num_points: int) -> dict[str, NDArray[Any]]:
    """The two files without a corruption."""
    subset = shared_subset(seed, "original", 0, shapes.points.shape[1], num_points)
    return {
        "label.npy": shapes.labels[:, None],
        "data_original.npy": shapes.points[:, subset],
    }


@contextmanager
def _runner(jobs: int) -> Iterator[Callable[[list[Chunk]], Iterable[list[Clouds]]]]:
    """Gives what runs chunks, in order: in this process, or in several that are spawned."""
    if jobs == 1:
        yield lambda chunks: map(corrupt_chunk, chunks)
        return
    executor = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))

    def run(chunks: list[Chunk]) -> Iterable[list[Clouds]]:
        with _ignoring_interrupts():  # processes start when work is handed in
            return executor.map(corrupt_chunk, chunks)

    try:
        yield run
    except (ValueError, ImportError) as error:
        # What a process raised ends in the executor's code; here it is one of this package again.
        raise type(error)(str(error)) from error
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Lets processes that start here leave Ctrl-C, which reaches all of a terminal, to this one."""
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _open_folder(out: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """Returns the files of an earlier call with the same settings; none in a new folder.

    Raises:
        ValueError: The folder holds files of other settings or of another origin.
    """
    path = out / MANIFEST
    if not path.exists():
        foreign = sorted([*out.glob("data_*.npy"), *out.glob("label.npy")])
        if foreign:
            raise ValueError(
                f"{out} holds {foreign[0].name} and no {MANIFEST}: these files are not from here, "
                "choose another --out"
            )
        return {}
    try:
        earlier = json.loads(path.read_text("utf-8"))
        files: dict[str, Any] = earlier["files"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): choose another --out") from error
    changed = [key for key, value in settings.items() if earlier.get(key) != value]
    if not changed:
        return files
    if not overwrite:
        raise ValueError(
            f"{out} was made with {changed[0]} {earlier.get(changed[0])}, not "
            f"{settings[changed[0]]}: choose another --out, or pass --overwrite to replace its "
            f"{len(files)} files"
        )
    for name in files:
        (out / name).unlink(missing_ok=True)
    return {}


def _is_intact(path: Path, files: dict[str, Any]) -> bool:
    return (
        path.name in files and path.exists() and sha256_of_file(path) == files[path.name]["sha256"]
    )
