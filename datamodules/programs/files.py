"""Programs on disk: JSON Lines, a program per line, and a manifest. Pictures are drawn when needed.

{"id": "000123", "canvas": 128, "grid": 8, "lines": [["Create", 1, 1], ...], "n_layers": 2,
 "depth": 12, "split": "train", "seed": 0}
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...modules.art2prog.language import Blend, Language, Program, ProgramError
from ...modules.files import atomic_write, write_json

VERSION = 1
MANIFEST = "manifest.json"


def write_programs(
    folder: str | Path,
    language: Language,
    splits: Mapping[Any, Iterable[Program]],
    sampler: Mapping[str, Any],
    canvas: int,
) -> None:
    """Writes `<split>.jsonl` for each split, then `manifest.json`.

    Args:
        folder: Where to; made if missing.
        language: Of the programs.
        splits: Programs by split.
        sampler: What made them, as JSON values.
        canvas: Side of their pictures in pixels, for the record.
    """
    counts = {}
    for split, programs in splits.items():
        counts[split] = 0
        with atomic_write(Path(folder) / f"{split}.jsonl", "w") as file:
            for number, program in enumerate(programs):
                row = {
                    "id": f"{number:06d}",
                    "canvas": canvas,
                    "grid": language.grid,
                    "lines": language.to_json(program),
                    "n_layers": 1 + sum(isinstance(line, Blend) for line in program.lines),
                    "depth": len(program),
                    "split": split,
                    "seed": sampler.get("seed"),
                }
                file.write(json.dumps(row) + "\n")
                counts[split] += 1
    manifest = {
        "version": VERSION,
        **language.settings(),
        "sampler": sampler,
        "counts": counts,
    }
    write_json(Path(folder) / MANIFEST, manifest)


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """Returns the manifest of a folder, None if it has none.

    Raises:
        ValueError: It is damaged, or of another version.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        raise ValueError(f"{path}: expected a manifest of version {VERSION}")
    return manifest


def read_programs(path: str | Path, language: Language) -> list[Program]:
    """Reads programs.

    Args:
        path: A `.jsonl` file.
        language: Of the programs.

    Raises:
        ValueError: There is no such file, or a line is no program; names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected programs, a JSON object per line")
    programs = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        place = f"{path}:{number}"
        try:
            row = json.loads(text)
        except ValueError as error:
            raise ProgramError(f"{place}: no JSON: {error}") from error
        if not isinstance(row, dict) or "lines" not in row:
            raise ProgramError(f"{place}: expected an object with lines")
        programs.append(language.from_json(row["lines"], place))
    return programs
