"""`tenfold show-program`: the programs that a run has written, as a web page.

Imports torch only when the command runs.
"""

import base64
import json
from pathlib import Path

from .errors import note

PAGE = "index.html"


def show_program(run: Path, out: Path | None = None, overwrite: bool = False) -> None:
    """Write a web page of the programs that a run predicted.

    `tenfold predict --run_dir RUN --data.images FOLDER`, then `tenfold show-program RUN`: each
    picture, its program line by line, a slider through its steps, layers to be switched off. One
    static file that asks for nothing from anywhere.

    Args:
        run: Directory of a run with predictions.
        out: File to write; by default `predictions/index.html` in the run.
        overwrite: Replace a file that exists.

    Raises:
        ValueError: There are no predictions, one is damaged, or the file exists.
    """
    folder = run / "predictions"
    manifest = folder / "manifest.jsonl"
    if not manifest.is_file():
        raise ValueError(
            f"{run}: no predictions: write some with `tenfold predict --run_dir {run}`"
        )
    path = out or folder / PAGE
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: choose another with --out, or --overwrite")

    from ..modules.art2prog.export import LANGUAGE
    from ..modules.art2prog.language import Language
    from ..modules.art2prog.page import page_item, programs_page
    from ..modules.files import atomic_write

    if not (folder / LANGUAGE).is_file():
        raise ValueError(f"{folder}: no {LANGUAGE}: these are no predictions of Art2Prog")
    language = Language.of(json.loads((folder / LANGUAGE).read_text(encoding="utf-8")))
    shown = []
    for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), 1):
        place = f"{manifest}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place}: no JSON: {error}") from error
        picture = folder / f"{record.get('id') if isinstance(record, dict) else ''}.png"
        png = base64.b64encode(picture.read_bytes()).decode() if picture.is_file() else ""
        shown.append(page_item(record, language, png, place))
    with atomic_write(path, "w") as file:
        file.write(programs_page(shown, language, f"Programs of {run.name}"))
    note(f"wrote {path}: {len(shown)} programs")
