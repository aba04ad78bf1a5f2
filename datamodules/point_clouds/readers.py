"""Labelled shapes from every format that point-cloud classification uses.

| format | what lies there | vertical axis |
|---|---|---|
| furniture | the embedded set | y |
| modelnet_h5 | ModelNet40 as HDF5: `train_files.txt`, `test_files.txt`, `shape_names.txt` | y |
| scanobjectnn | ScanObjectNN: `training_objectdataset*.h5`, `test_objectdataset*.h5` | y |
| meshes | `<class>/{train,test}/*.off` (ModelNet10 and 40) or `<class>/*.obj` ... | z for .off |
| npz | one file with x (n, P, 3) and y (n,); optional c, n (names) and test (n,) bool | y |

What is wrong as a whole (a missing file or class folder, a wrong rank, a label outside the
classes) is refused; a single bad shape (points that are not finite, an empty mesh) is left out and
told in `ShapeSet.skipped`, or refused too with `strict`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .furniture import load_furniture
from .meshes import MESH_SUFFIXES, MeshFile, sample_meshes
from .shapes import Integers, ShapeSet, checked_shapes, stratified_split

Split = Literal["train", "test", "all"]
Format = Literal["auto", "furniture", "modelnet_h5", "scanobjectnn", "meshes", "npz"]
SCANOBJECTNN_CLASSES = (
    *("bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table"),
    *("bed", "pillow", "sink", "sofa", "toilet"),
)
# Where a source has no split of its own, each class gives this share to "test".
TEST_FRACTION, TEST_SEED = 0.3, 0


def load_split(
    source: str | Path,
    split: Split,
    format: Format = "auto",  # noqa: A002 - the word for it
    *,
    num_points: int = 2048,
    seed: int = 0,
    strict: bool = False,
    variant: str = "",
    cache_dir: str | None = None,
    num_workers: int = 0,
) -> ShapeSet:
    """Reads a split of a data set of labelled shapes.

    A source without a split of its own (meshes by class, .npz) is divided: a share of each class
    that depends on the shapes' names or order alone is "test".

    Args:
        source: "furniture", or a file or folder.
        split: "train", "test" or "all" (train, then test).
        format: One of the table above; "auto" looks what lies there.
        num_points: Points to sample from the surface of a mesh. Sources of points give all they
            have.
        seed: Of that sampling.
        strict: Whether a single bad shape is an error.
        variant: Of ScanObjectNN's files: what follows "objectdataset" in their names, such as
            "_augmentedrot_scale75" (PB_T50_RS).
        cache_dir: Where sampled meshes are kept; by default `$TENFOLD_CACHE`, else
            `~/.cache/tenfold`.
        num_workers: Processes that sample meshes.

    Returns:
        The shapes in the order of the files.

    Raises:
        ValueError: Nothing that can be read lies there, or it is broken; the message says what.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be train, test or all, got {split!r}")
    if num_points < 1:
        raise ValueError(f"num_points must be 1 or more, got {num_points}")
    path = Path(source).expanduser()
    found = detect_format(source) if format == "auto" else format
    if found == "furniture":
        return load_furniture(split)
    if found == "modelnet_h5":
        shapes = _read_in_splits(path, split, read_modelnet_h5)
    elif found == "scanobjectnn":
        shapes = _read_in_splits(path, split, lambda p, s: read_scanobjectnn(p, s, variant))
    elif found == "npz":
        shapes = read_npz(path, split)
    elif found == "meshes":
        files, class_names, has_split = list_meshes(path, split)
        if not has_split and split != "all":
            labels = np.array([file.label for file in files], dtype=np.int64)
            is_test = stratified_split(labels, None, TEST_FRACTION, TEST_SEED)
            files = [f for f, test in zip(files, is_test, strict=True) if test == (split == "test")]
        shapes = sample_meshes(
            path, files, class_names, num_points, seed, strict, cache_dir, num_workers
        )
    else:
        raise ValueError(f"format must be one of {', '.join(get_args(Format))}, got {found!r}")
    return checked_shapes(shapes, str(source), strict)


def detect_format(source: str | Path) -> Format:
    """Returns the format of what lies at a path.

    Raises:
        ValueError: Nothing is there, or nothing that is known.
    """
    path = Path(source).expanduser()
    if str(source) == "furniture":
        return "furniture"
    if not path.exists():
        raise ValueError(f"no data at '{source}' (expected a file, a folder, or 'furniture')")
    if path.is_file():
        if path.suffix == ".npz":
            return "npz"
    elif (path / "train_files.txt").exists() or (path / "test_files.txt").exists():
        return "modelnet_h5"
    elif any(path.glob("*_objectdataset*.h5")):
        return "scanobjectnn"
    elif any(_mesh_files(path / name, recursive=True) for name in _class_folders(path)):
        return "meshes"
    raise ValueError(
        f"'{source}' is no known data set (expected ModelNet40's HDF5 folder with train_files.txt, "
        "ScanObjectNN's *_objectdataset*.h5, a folder of meshes <class>/{train,test}/*.off or "
        "<class>/*.obj, or an .npz with x and y)"
    )


def read_modelnet_h5(folder: Path, split: Literal["train", "test"]) -> ShapeSet:
    """Reads the HDF5 files that `<split>_files.txt` lists, in its order.

    The list holds paths of the machine that made it; their last parts are looked for in `folder`.

    Raises:
        ValueError: The list, or a file of it, is missing or broken.
    """
    listing = folder / f"{split}_files.txt"
    if not listing.exists():
        raise ValueError(f"no {listing.name} in '{folder}' (expected the names of its HDF5 files)")
    files = [Path(line.strip()).name for line in listing.read_text("utf-8").split()]
    if not files:
        raise ValueError(f"{listing} lists no file")
    missing = [name for name in files if not (folder / name).exists()]
    if missing:
        raise ValueError(f"'{folder}' lacks {', '.join(missing)}, which {listing.name} lists")
    parts = [read_h5(folder / name) for name in files]
    labels = np.concatenate([labels for _, labels in parts])
    names_file = folder / "shape_names.txt"
    if not names_file.exists():
        raise ValueError(f"no shape_names.txt in '{folder}' (one class name a line, line = label)")
    class_names = tuple(names_file.read_text("utf-8").split())
    names = [f"{name}:{row}" for name, (x, _) in zip(files, parts, strict=True) for row in _rows(x)]
    return ShapeSet(_joined([x for x, _ in parts], folder), labels, class_names, tuple(names))


def read_scanobjectnn(folder: Path, split: Literal["train", "test"], variant: str = "") -> ShapeSet:
    """Reads `training_objectdataset<variant>.h5` or `test_objectdataset<variant>.h5`.

    Raises:
        ValueError: The file is missing or broken.
    """
    stem = "training" if split == "train" else "test"
    path = folder / f"{stem}_objectdataset{variant}.h5"
    if not path.exists():
        there = ", ".join(sorted(p.name for p in folder.glob("*_objectdataset*.h5")))
        raise ValueError(f"no {path.name} in '{folder}' (there is {there}: see `variant`)")
    points, labels = read_h5(path)
    names = tuple(f"{path.name}:{row}" for row in _rows(points))
    return ShapeSet(points, labels, SCANOBJECTNN_CLASSES, names)


def read_h5(path: Path) -> tuple[NDArray[Any], Integers]:
    """Returns `data` (n, P, 3) and `label` squeezed to (n,) int64 of an HDF5 file.

    Raises:
        ValueError: It cannot be read, or lacks one of them.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path} needs the package h5py: pip install 'tenfold[point-clouds]'"
        ) from error
    try:
        with h5py.File(path) as file:
            points, labels = file["data"][:], file["label"][:]
    except (OSError, KeyError) as error:
        raise ValueError(
            f"cannot read {path} (expected HDF5 with data and label): {error}"
        ) from error
    _check_rank(points, path)
    return points, _as_labels(labels, path)


def read_npz(path: Path, split: Split) -> ShapeSet:
    """Reads x (n, P, 3) and y (n,), and c (classes), n (names), test (n,) bool if they are there.

    Raises:
        ValueError: It cannot be read, lacks x or y, or their lengths differ.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        points, labels = arrays["x"], _as_labels(arrays["y"], path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"cannot read {path} (expected an .npz with x (n, P, 3) and y (n,)): {error}"
        ) from error
    _check_rank(points, path)
    for name in ("y", "n", "test"):
        if name in arrays and len(arrays[name]) != len(points):
            raise ValueError(
                f"{path}: {len(points)} clouds in x, but {len(arrays[name])} in {name}"
            )
    num_classes = int(labels.max(initial=-1)) + 1
    class_names = arrays.get("c", np.array([f"class {k}" for k in range(num_classes)]))
    names = arrays.get("n", np.arange(len(points)))
    shapes = ShapeSet(
        points, labels, tuple(map(str, class_names.tolist())), tuple(map(str, names.tolist()))
    )
    is_test = arrays.get("test")
    if is_test is None:
        is_test = stratified_split(labels, None, TEST_FRACTION, TEST_SEED)
    is_test = is_test.astype(np.bool_)
    if split == "all":
        return shapes.subset(np.argsort(is_test, kind="stable"))
    return shapes.subset(is_test if split == "test" else ~is_test)


def list_meshes(folder: Path, split: Split) -> tuple[list[MeshFile], tuple[str, ...], bool]:
    """Lists the meshes of `<class>/<split>/` or `<class>/`, class by class in alphabetical order.

    Returns:
        The files, the class names, and whether the folders are divided into train and test.

    Raises:
        ValueError: No class folder, or one without a mesh for the split.
    """
    class_names = _class_folders(folder) if folder.is_dir() else ()
    if not class_names:
        raise ValueError(f"no class folder in '{folder}' (expected <class>/{{train,test}}/*.off)")
    has_split = any((folder / name / part).is_dir() for name in class_names for part in _PARTS)
    parts = _PARTS if split == "all" else (split,)
    files: list[MeshFile] = []
    for part in parts if has_split else ("",):
        for label, name in enumerate(class_names):
            found = _mesh_files(folder / name / part)
            if not found:
                raise ValueError(
                    f"no mesh in '{folder / name / part}' (expected {', '.join(MESH_SUFFIXES)})"
                )
            files += [MeshFile(path, label) for path in found]
    return files, class_names, has_split


_PARTS: tuple[Literal["train", "test"], ...] = ("train", "test")


def _read_in_splits(
    path: Path, split: Split, read: Callable[[Path, Literal["train", "test"]], ShapeSet]
) -> ShapeSet:
    if split != "all":
        return read(path, split)
    first, second = (read(path, part) for part in _PARTS)
    return replace(
        first,
        points=_joined([first.points, second.points], path),
        labels=np.concatenate([first.labels, second.labels]),
        names=(*first.names, *second.names),
    )


def _joined(parts: Sequence[NDArray[Any]], where: Path) -> NDArray[Any]:
    counts = {part.shape[1] for part in parts}
    if len(counts) > 1:
        raise ValueError(f"the files of '{where}' have different numbers of points: {counts}")
    return np.concatenate(parts)


def _rows(points: NDArray[Any]) -> range:
    return range(len(points))


def _check_rank(points: NDArray[Any], path: Path) -> None:
    if points.ndim != 3 or points.shape[2] != 3:
        raise ValueError(f"{path}: points must have the shape (n, P, 3), found {points.shape}")


def _as_labels(labels: NDArray[Any], path: Path) -> Integers:
    """Returns (n,) int64 of labels (n,) or (n, 1)."""
    if labels.dtype.kind not in "iu" or labels.size != len(labels):
        raise ValueError(
            f"{path}: labels must be integers of the shape (n,) or (n, 1), found {labels.dtype} "
            f"{labels.shape}"
        )
    return labels.reshape(-1).astype(np.int64)


def _class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(
        sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "_")))
    )


def _mesh_files(folder: Path, recursive: bool = False) -> list[Path]:
    found = (folder.rglob if recursive else folder.glob)("*") if folder.is_dir() else ()
    return sorted(
        p for p in found if p.suffix.lower() in MESH_SUFFIXES and not p.name.startswith(".")
    )
