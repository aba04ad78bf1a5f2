"""The files that Ctrl-CIC's own programs write and read: texts, features, highlights.

extracted_texts/<split>/<page>.pkl               titles, texts and captions of a page
<split>_image_dict_v7.csv (train: v9)            sample_idx, img_path, img_idx, sec_idx, exist
extracted_image_features/<split>_image_feature_matrix.pt     a row for each image that exists
<name>.json                                      {"<original_index>": [[phrase, ...], ...]}
"""

import csv
import hashlib
import io
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .examples import SPLITS, CaptionExample, Examples, Split
from .pages import squeeze

COLUMNS = {"sample_idx", "img_path", "img_idx", "sec_idx"}


class CtrlCICFiles(Examples):
    """Records of the authors' preprocessed WikiWeb2M.

    Their features are used as they are. Texts are pickles, of which only plain values are read:
    anything else is refused, not run.

    Args:
        root: Folder with the files above.
        highlights: JSON file of highlights for the test, by `original_index`; images without any
            are left out of the test then. None: the test has no highlights.
        test_csv: A CSV of test images in place of the split's own, such as those that the
            highlights were made for; its `original_index` is the row of the feature.

    Raises:
        ValueError: A file is missing or not what it should be.
    """

    def __init__(
        self, root: str, highlights: str | None = None, test_csv: str | None = None
    ) -> None:
        self.root, self.highlights, self.test_csv = root, highlights, test_csv
        if not Path(root).expanduser().is_dir():
            raise ValueError(f"root: there is no folder {root}")

    @property
    def _root(self) -> Path:
        return Path(self.root).expanduser()

    @property
    def identity(self) -> dict[str, Any]:
        """See `Examples`: settings, and sizes of the tables."""
        self._load()
        sizes = {name: len(rows) for name, rows in self._rows.items()}
        digest = hashlib.sha256(json.dumps(self._rows, sort_keys=True).encode()).hexdigest()
        return {"examples": "ctrl_cic_files", "records": sizes, "tables": digest}

    def split(self, name: Split) -> Sequence[CaptionExample]:
        """See `Examples`."""
        self._load()
        return _Rows(self, name)

    @property
    def has_features(self) -> bool:
        """See `Examples`."""
        self._load()
        return bool(self._features)

    @property
    def num_images(self) -> int:
        """See `Examples`."""
        self._load()
        return sum(map(len, self._rows.values()))

    def feature(self, number: int) -> Tensor:
        """See `Examples`."""
        name, row = self._place(number)
        return self._features[name][self._rows[name][row]["feature"]].float()

    def image(self, number: int) -> Image.Image:
        """See `Examples`."""
        name, row = self._place(number)
        path = self._root / "images" / self._rows[name][row]["img_path"]
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError) as error:
            raise ValueError(f"image {path} cannot be read: {error}") from error

    def _place(self, number: int) -> tuple[Split, int]:
        self._load()
        for name in SPLITS:
            if number < len(self._rows[name]):
                return name, number
            number -= len(self._rows[name])
        raise IndexError(number)

    def example(self, name: Split, index: int) -> CaptionExample:
        """Returns a record."""
        row = self._rows[name][index]
        page = self._page(name, row["sample_idx"])
        section, number = int(row["sec_idx"]), int(row["img_idx"])
        captions: Mapping[int, Mapping[int, str]] = page["image_captions"]
        try:
            title, text = page["section_dict"][section]
            caption = captions[section][number]
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(
                f"{self._root}: page {row['sample_idx']} has no image {number} in section {section}"
            ) from error
        offset = sum(len(self._rows[other]) for other in SPLITS[: SPLITS.index(name)])
        given = row.get("highlights", [])
        siblings = (c for k, c in captions[section].items() if k != number and c)
        others = tuple(
            (t, x, tuple(captions.get(k, {}).values()))
            for k, (t, x) in page["section_dict"].items()
            if k != section
        )
        return CaptionExample(
            id=f"{name}/{row['key']}",
            caption=squeeze(caption),
            image=offset + index,
            page_title=page["page_title"],
            section_title=title,
            section_text=text,
            other_captions=tuple(siblings),
            group=f"{name}/{row['sample_idx']}",
            highlights=tuple(tuple(phrases) for phrases in given),
            references=("",) * len(given),
            page_url=page["page_url"],
            other_sections=others,
        )

    def _page(self, name: Split, number: str) -> dict[str, Any]:
        path = self._root / "extracted_texts" / name / f"{number}.pkl"
        page = read_plain_pickle(path)
        wanted = {"page_url", "page_title", "section_dict", "image_captions"}
        if not isinstance(page, dict) or not wanted <= page.keys():
            raise ValueError(f"{path}: expected a dict with {', '.join(sorted(wanted))}")
        return page

    def _load(self) -> None:
        if "_rows" in vars(self):
            return
        rows: dict[str, list[dict[str, Any]]] = {}
        features: dict[str, Tensor] = {}
        for name in SPLITS:
            rows[name] = self._table(name)
            path = self._root / "extracted_image_features" / f"{name}_image_feature_matrix.pt"
            if path.is_file():
                features[name] = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
        with_rows: set[str] = {name for name in SPLITS if rows[name]}
        if features and not with_rows <= features.keys():
            missing = ", ".join(sorted(with_rows - features.keys()))
            raise ValueError(f"{self._root}: there is no feature matrix for {missing}")
        if not with_rows:
            raise ValueError(f"{self._root}: there is no <split>_image_dict_v7.csv with images")
        for split, table in features.items():
            most = max((row["feature"] for row in rows[split]), default=-1)
            if most >= len(table):
                raise ValueError(f"{self._root}: {split} has {len(table)} features, not {most + 1}")
        if self.highlights is not None:
            rows["test"] = self._highlighted(rows["test"])
        self._features = features
        self._rows = rows

    def _table(self, name: str) -> list[dict[str, Any]]:
        if name == "test" and self.test_csv is not None:
            path = Path(self.test_csv).expanduser()
        else:
            found = sorted(self._root.glob(f"{name}_image_dict_v*.csv"))
            if not found:
                return []
            path = found[-1]
        try:
            with path.open(newline="", encoding="utf-8") as file:
                table = [*csv.DictReader(file)]
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if table and not table[0].keys() >= COLUMNS:
            raise ValueError(f"{path}: expected columns {', '.join(sorted(COLUMNS))}")
        kept = [row for row in table if row.get("exist", "1") not in ("0", "False")]
        found_rows = []
        for place, row in enumerate(kept):
            index = int(row.get("original_index") or place)
            key = row.get("key") or str(index)
            found_rows.append({n: row[n] for n in COLUMNS} | {"feature": index, "key": key})
        return found_rows

    def _highlighted(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        path = Path(str(self.highlights)).expanduser()
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"highlights {path} cannot be read: {error}") from error
        kept: dict[int, dict[str, Any]] = {}
        for row in rows:
            found = given.get(str(row["feature"]))
            if found:  # the authors' CSV has a row for each highlight of an image
                kept.setdefault(row["feature"], row | {"highlights": found, "key": row["feature"]})
        if not kept:
            raise ValueError(f"highlights {path}: none is for an image of the test")
        return [*kept.values()]


class _Rows(Sequence[CaptionExample]):
    """Records of a split, read when they are looked at."""

    def __init__(self, files: CtrlCICFiles, name: Split) -> None:
        self.files, self.name = files, name

    def __len__(self) -> int:
        self.files._load()
        return len(self.files._rows[self.name])

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.files.example(self.name, index)


class _PlainUnpickler(pickle.Unpickler):
    """Reads dicts, lists, texts and numbers; refuses to look up anything to call."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"it wants {module_name}.{global_name}, which is not run here")


def read_plain_pickle(path: Path) -> Any:
    """Reads a pickle of plain values.

    Raises:
        ValueError: It cannot be read, or holds anything else.
    """
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except (OSError, EOFError, ValueError, IndexError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
