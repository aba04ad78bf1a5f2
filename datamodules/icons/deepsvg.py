"""DeepSVG's data sets on disk: a table of icons and a pickle of tensors for each.

`<name>_meta.csv` has the columns id, nb_groups, max_len_group and total_len; `<name>_tensor/` holds
`<id>.pkl`, a pickle of {"tensors": [augmentation: [path: (n, 14)]], "fillings": [path: 0, 1, 2]}.
A pickle can run code: these are opened by an unpickler that knows tensors and plain types only.
"""

import csv
import io
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...modules.deepicon.deepsvg import document_from_deepsvg
from ...modules.svg import Document, Stroke

STROKE = Stroke(width=1.0, cap="round", join="round")
MAX_GROUPS, MAX_GROUP_LENGTH, MAX_LENGTH = 8, 30, 50  # DeepSVG's own filter


def deepsvg_table(folder: Path) -> Path | None:
    """Returns the table of a data set in a folder, None if it is none."""
    for table in sorted(folder.glob("*_meta.csv")):
        if _tensor_folder(table).is_dir():
            return table
    return None


def deepsvg_documents(table: Path) -> Iterator[tuple[str, Document | ValueError]]:
    """Yields id and document of each icon that DeepSVG's filter keeps, or what is wrong with it.

    Of the augmented versions of an icon the first is taken: augmentation is ours.

    Raises:
        ValueError: The table lacks a column.
    """
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        needed = {"id", "nb_groups", "max_len_group", "total_len"}
        if missing := needed - set(reader.fieldnames or ()):
            raise ValueError(f"{table}: no column {', '.join(sorted(missing))}")
        rows = list(reader)
    for row in rows:
        if (
            int(row["nb_groups"]) > MAX_GROUPS
            or int(row["max_len_group"]) > MAX_GROUP_LENGTH
            or int(row["total_len"]) > MAX_LENGTH
        ):
            yield row["id"], ValueError("is longer than DeepSVG's filter allows")
            continue
        try:
            content = load_deepsvg(_tensor_folder(table) / f"{row['id']}.pkl")
            yield row["id"], document_from_deepsvg(*content, STROKE)
        except ValueError as error:
            yield row["id"], error


def load_deepsvg(path: Path) -> tuple[list[Tensor], list[int]]:
    """Returns the tensors of the first version of an icon, and its fillings.

    Raises:
        ValueError: The file is missing or damaged, or holds more than tensors and plain types.
    """
    try:
        with path.open("rb") as file:
            content = _TensorUnpickler(file).load()
        tensors, fillings = list(content["tensors"][0]), [int(f) for f in content["fillings"]]
    except (OSError, EOFError, KeyError, IndexError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"cannot be read ({' '.join(str(error).split())})") from error
    if len(tensors) != len(fillings) or not all(isinstance(t, Tensor) for t in tensors):
        raise ValueError("does not hold a tensor and a filling for each path")
    return tensors, fillings


class _TensorUnpickler(pickle.Unpickler):
    """Knows what `pickle.dump` makes of tensors, and nothing that runs code."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
            ("torch.storage", "_load_from_bytes"): _load_storage,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which could run code")
        return known[module, name]


def _load_storage(content: bytes) -> Any:
    # torch's own function of this name loads without `weights_only`.
    return torch.load(io.BytesIO(content), weights_only=True)


def _tensor_folder(table: Path) -> Path:
    return table.with_name(table.name.removesuffix("_meta.csv") + "_tensor")
