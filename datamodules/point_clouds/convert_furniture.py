"""Makes the embedded furniture set from Debian's package sweethome3d-furniture 1.8-1.

    apt-get download sweethome3d-furniture && dpkg-deb -x sweethome3d-furniture_*.deb root
    python -m tenfold.datamodules.point_clouds.convert_furniture --deb_root root --out furniture.npz

The same package gives the same bytes. The licence of each model is read from its library, and
where the model has a licence file of its own, from that too; others than CC-BY-3.0, CC-BY-3.0-US
and CC0 are left out and listed. The models are of free licences but large, so the set holds points
only; `--mesh_dir` writes the meshes, from which occlusion and LiDAR views can be made.

The text file beside `--out` names authors and licences and has to go wherever the set goes.
"""

import hashlib
import re
import tempfile
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ...modules.files import atomic_path, atomic_write
from .furniture import decode_clouds, encode_clouds
from .furniture_classes import CLASS_NAMES, EXCEPTIONS, VERSION, class_of
from .shapes import Integers, stratified_split, unit_box, unit_sphere

if TYPE_CHECKING:
    from trimesh import Trimesh

Array = NDArray[np.float64]
NUM_POINTS, NUM_BITS = 2048, 12
TEST_FRACTION, SPLIT_SEED = 0.3, 0
LIBRARIES = ("BlendSwap-CC-0", "BlendSwap-CC-BY", "KatorLegaz", "Reallusion", "Scopia")
# What a library or a model says of its licence (lower case) -> our name of it.
LICENSES = {
    r"creative commons zero|public domain": "CC0-1.0",
    r"attribution 3\.0 united states": "CC-BY-3.0-US",
    r"creative commons attribution 3\.0(?! united)": "CC-BY-3.0",
}
OTHER_LICENSES = re.compile(r"share-?alike|non-?commercial|no-?deriv|gpl|all rights reserved")
# Two models are versions of one when the points of each lie as near to the surface of the other
# as to their own, up to this factor; the distance to a surface is that to so many of its points.
NEAR_FACTOR, DENSE_POINTS = 1.5, 16384
# Meshes with equal faces are one model deformed, unless they are as simple as a box.
MANY_FACES = 200


@dataclass(frozen=True)
class Model:
    """A model of the catalogue that is part of the set.

    Attributes:
        key: Library and folder, such as "Scopia/scopia/armchair".
        name: English name.
        label: Class.
        author: Who made it.
        license: SPDX-like name of its licence.
        mesh: Upright mesh, y up, in the frame and scale of its points.
        points: (NUM_POINTS, 3), unit sphere.
    """

    key: str
    name: str
    label: str
    author: str
    license: str
    mesh: "Trimesh"
    points: Array


def convert(deb_root: Path, out: Path, mesh_dir: Path | None = None) -> None:
    """Converts the libraries to one file of points, and writes the text of licences beside it.

    Args:
        deb_root: Folder into which `dpkg-deb -x` unpacked the package.
        out: The .npz to write; `FURNITURE_LICENSES.txt` is written into the same folder.
        mesh_dir: Where to write the meshes, as <class>/<split>/<library>-<model>.ply.

    Raises:
        ValueError: A library is missing, or a model cannot be read.
    """
    models: list[Model] = []
    left_out: list[str] = []
    for library in LIBRARIES:
        path = deb_root / "usr/share/sweethome3d/furniture" / f"{library}.sh3f"
        if not path.exists():
            raise ValueError(f"no {path} (unpack sweethome3d-furniture with dpkg-deb -x)")
        found, rest = read_library(path)
        models += found
        left_out += rest
    models.sort(key=lambda model: (CLASS_NAMES.index(model.label), model.key))
    labels = np.array([CLASS_NAMES.index(model.label) for model in models])
    groups = near_duplicates(models, labels)
    is_test = stratified_split(labels, groups, TEST_FRACTION, SPLIT_SEED)
    points = np.stack([model.points for model in models]).astype(np.float32)
    planes = encode_clouds(points, NUM_BITS)
    with atomic_path(out) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            planes=planes,
            num_points=np.int64(NUM_POINTS),
            num_bits=np.int64(NUM_BITS),
            labels=labels.astype(np.uint8),
            groups=groups.astype(np.uint16),
            is_test=is_test,
            class_names=np.array(CLASS_NAMES),
            names=np.array([model.key for model in models]),
            rules_version=np.int64(VERSION),
        )
    with atomic_write(out.with_name("FURNITURE_LICENSES.txt"), "w") as file:
        file.write(license_text(models, left_out))
    if mesh_dir is not None:
        for model, test in zip(models, is_test, strict=True):
            name = model.key.replace("/", "-")
            with atomic_write(
                mesh_dir / model.label / ("test" if test else "train") / f"{name}.ply"
            ) as file:
                file.write(model.mesh.export(file_type="ply"))
    _report(points, planes, labels, groups, is_test, out)


def read_library(path: Path) -> tuple[list[Model], list[str]]:
    """Reads the models of a library that have a class and a free licence.

    Args:
        path: A .sh3f file.

    Returns:
        The models, and a line for each model that has a class by its name and is left out.

    Raises:
        ValueError: The licence of the library is none of the free ones.
    """
    models, left_out = [], []
    with zipfile.ZipFile(path) as library, tempfile.TemporaryDirectory() as folder:
        catalogue = library.read("PluginFurnitureCatalog.properties").decode("latin-1")
        overall = license_of(catalogue.partition("\nid#1=")[0])
        if overall is None:
            raise ValueError(f"{path}: its licence is none of {', '.join(LICENSES.values())}")
        for entry in read_catalogue(catalogue):
            file = entry["model"].removeprefix("/")
            model = file.rpartition("/")[0]
            label = class_of(model, entry["name"])
            if label is None:
                if model in EXCEPTIONS:
                    left_out.append(f"{path.stem}/{model}: {EXCEPTIONS[model][1]}")
                continue
            license_name = own_license(library, model, overall)
            if license_name is None:
                left_out.append(f"{path.stem}/{model}: another licence")
                continue
            mesh, points = _normalized(
                _load(Path(library.extract(file, folder))),
                np.array(entry.get("modelRotation", "1 0 0 0 1 0 0 0 1").split(), dtype=float),
                f"{path.stem}/{model}",
            )
            models.append(
                Model(
                    key=f"{path.stem}/{model}",
                    name=entry["name"],
                    label=label,
                    author=entry["creator"],
                    license=license_name,
                    mesh=mesh,
                    points=points,
                )
            )
    return models, left_out


def read_catalogue(text: str) -> list[dict[str, str]]:
    """Returns the entries of a Java properties file with keys such as "name#12"."""
    entries: dict[int, dict[str, str]] = {}
    for key, number, value in re.findall(r"^(\w+)#(\d+)=(.*?)\s*$", text, flags=re.MULTILINE):
        entries.setdefault(int(number), {})[key] = value
    return [entries[number] for number in sorted(entries)]


def license_of(text: str) -> str | None:
    """Returns our name of the licence that a text states, None if it is not among `LICENSES`."""
    text = " ".join(text.lower().split())
    if OTHER_LICENSES.search(text):
        return None
    if "creative commons 3.0 attribution 3.0 united states" in text:
        return "CC-BY-3.0-US"
    for pattern, name in LICENSES.items():
        if re.search(pattern, text):
            return name
    return None


def own_license(library: zipfile.ZipFile, model: str, overall: str) -> str | None:
    """Returns the licence of a model: that of the file in its folder, else that of the library."""
    names = [
        name
        for name in library.namelist()
        if name.startswith(f"{model}/") and "license" in name.rpartition("/")[2].lower()
    ]
    for name in names:
        text = library.read(name).decode("latin-1")
        stated = re.search(r"released under(?: the following license:)?\s+(.{10,60})", text, re.S)
        found = license_of(re.sub(r"<[^>]*>", " ", stated[1] if stated else text))
        if found is None:
            return None
        overall = found
    return overall


def near_duplicates(models: list[Model], labels: Integers) -> Integers:
    """Finds versions of one model: equal faces, or surfaces that agree up to sampling.

    Compared are models of one class, also turned by quarters and mirrored. Versions of versions
    are versions: groups are connected components.

    Args:
        models: n models.
        labels: (n,) their classes.

    Returns:
        (n,) the number of the group of each, groups numbered as they first occur.
    """
    import trimesh

    faces = [hashlib.sha256(np.asarray(m.mesh.faces).tobytes()).digest() for m in models]
    dense: list[Array] = []
    for model in models:
        sample, _ = trimesh.sample.sample_surface(
            model.mesh, DENSE_POINTS, seed=_seed_of(model.key + " dense")
        )
        dense.append(unit_box(np.asarray(sample)))  # unlike a mean, a box does not depend on luck
    trees = [cKDTree(cloud) for cloud in dense]
    own = [
        float(np.asarray(tree.query(cloud[:512], k=2)[0])[:, 1].mean())
        for tree, cloud in zip(trees, dense, strict=True)
    ]
    boxes = np.stack([np.ptp(cloud, axis=0) for cloud in dense])
    group = list(range(len(models)))
    for i, j in zip(*np.nonzero(np.triu(labels[:, None] == labels[None, :], k=1)), strict=True):
        if group[i] == group[j]:
            continue
        limit = NEAR_FACTOR * max(own[i], own[j])
        same_faces = faces[i] == faces[j] and len(models[i].mesh.faces) >= MANY_FACES
        if same_faces or _agree(i, j, dense, trees, boxes, limit):
            group = [group[i] if g == group[j] else g for g in group]
    return np.unique(group, return_inverse=True)[1].astype(np.int64)


def license_text(models: list[Model], left_out: list[str]) -> str:
    """Returns the text that names authors and licences of all models and what was left out."""
    by_license: dict[str, list[Model]] = {}
    for model in models:
        by_license.setdefault(model.license, []).append(model)
    lines = [
        "The point clouds in furniture.npz are samples of the surfaces of the models listed here,",
        "which were turned upright, centred, scaled and quantised. The models come from Debian's",
        "package sweethome3d-furniture 1.8-1 (http://www.sweethome3d.com), to which Emmanuel",
        "Puybaret / eTeks converted them.",
        "",
        "CC-BY-3.0     https://creativecommons.org/licenses/by/3.0/legalcode",
        "CC-BY-3.0-US  https://creativecommons.org/licenses/by/3.0/us/legalcode",
        "CC0-1.0       https://creativecommons.org/publicdomain/zero/1.0/legalcode",
        "",
        "KatorLegaz: Copyright 2003-2008 Andrew Kator & Jennifer Legaz",
        "Reallusion: Copyright 2008-2016 Reallusion, http://www.reallusion.com",
        "Scopia: Copyright Emmanuel Puybaret / eTeks and Scopia Visual Interfaces Systems",
        "BlendSwap: the authors named below, from http://www.blendswap.com",
    ]
    for license_name in sorted(by_license):
        lines += ["", f"{license_name}: {len(by_license[license_name])} models", ""]
        lines += [
            f"{model.key}: {model.name}, by {model.author} ({model.label})"
            for model in by_license[license_name]
        ]
    lines += ["", "Left out although the name tells a class:", "", *left_out, ""]
    return "\n".join(lines)


def _load(path: Path) -> "Trimesh":
    import trimesh

    return trimesh.load_mesh(path, process=False, skip_materials=True)


def _normalized(mesh: "Trimesh", rotation: Array, key: str) -> tuple["Trimesh", Array]:
    """Turns a mesh upright; returns it and samples of its surface in the frame of the samples."""
    import trimesh

    vertices = np.asarray(mesh.vertices) @ rotation.reshape(3, 3).T
    mesh = trimesh.Trimesh(vertices, mesh.faces, process=False)
    sample, _ = trimesh.sample.sample_surface(mesh, NUM_POINTS, seed=_seed_of(key))
    points = unit_sphere(np.asarray(sample))
    # Two points give the map from the mesh's frame to that of the points.
    first, last = np.argmin(points[:, 0]), np.argmax(points[:, 0])
    scale = (points[last, 0] - points[first, 0]) / (sample[last, 0] - sample[first, 0])
    shift = points[first] - scale * sample[first]
    return trimesh.Trimesh(vertices * scale + shift, mesh.faces, process=False), points


def _agree(
    i: int, j: int, dense: list[Array], trees: list[Any], boxes: Array, limit: float
) -> bool:
    for turn in range(4):
        box = boxes[j] if turn % 2 == 0 else boxes[j, [2, 1, 0]]
        # Surfaces that agree have nearly equal boxes; this spares most comparisons.
        if np.abs(box - boxes[i]).max() > 0.15:
            continue
        cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[turn]
        rotation = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]], dtype=float)
        for mirror in (1.0, -1.0):
            pose = rotation @ np.diag([mirror, 1, 1])
            there = trees[i].query(dense[j][:512] @ pose.T)[0].mean()
            if there < limit and trees[j].query(dense[i][:512] @ pose)[0].mean() < limit:
                return True
    return False


def _seed_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _report(
    points: NDArray[np.float32],
    planes: NDArray[np.uint8],
    labels: Integers,
    groups: Integers,
    is_test: NDArray[np.bool_],
    out: Path,
) -> None:
    sizes = np.unique(groups, return_counts=True)[1]
    print(f"{len(points)} shapes in {len(CLASS_NAMES)} classes, {out.stat().st_size} bytes")
    print(f"{(sizes > 1).sum()} groups of versions hold {sizes[sizes > 1].sum()} shapes")
    for label, name in enumerate(CLASS_NAMES):
        mine = labels == label
        counts = Counter(is_test[mine].tolist())
        num_groups = len(np.unique(groups[mine]))
        print(f"{name:8} train {counts[False]:3} test {counts[True]:3} groups {num_groups:3}")
    decoded = decode_clouds(planes, NUM_POINTS, NUM_BITS)
    errors = np.array([cKDTree(b).query(a)[0] for a, b in zip(points, decoded, strict=True)])
    print(f"quantisation error: mean {errors.mean():.6f}, max {errors.max():.6f}")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(convert, as_positional=False)
