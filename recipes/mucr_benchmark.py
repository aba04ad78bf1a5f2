"""`tenfold mucr`: builds a benchmark of causes and effects from core captions.

Imports torch only when the command runs.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .arguments import read_yaml, refuse_secrets, settings_of_structure
from .catalogue import find_recipe
from .classes import import_named
from .errors import note

KEY = "benchmark"


def mucr(
    config: str | None = None,
    out: Path | None = None,
    captions: str | None = None,
    override: dict[str, Any] | None = None,
) -> None:
    """Build a benchmark in MuCR's format: descriptions, pictures, cues and explanations.

    `tenfold mucr --config mucr/pipeline_sprites --out data/mucr_sprites` writes annotations.jsonl,
    images/ and what they were made of. The same command goes on where it was stopped: no answer is
    asked for and no picture painted twice. Recipes: mucr/pipeline_sprites (no model),
    mucr/pipeline_server, mucr/pipeline_diffusion. Scores on it are no scores of MuCR.

    Args:
        config: A recipe with the key `benchmark`, or a built-in name.
        out: Folder to write.
        captions: File of core captions, in place of the recipe's.
        override: Other settings in place of the recipe's: `--override '{image_size: 256}'`.

    Raises:
        ValueError: The recipe, the captions or what models answer is no good; one line.
    """
    if config is None or out is None:
        raise ValueError(
            "mucr needs a recipe and a folder: --config mucr/pipeline_sprites --out DIR"
        )
    path = find_recipe(config)
    content = read_yaml(path)
    if content.keys() != {KEY}:
        raise ValueError(f"{path}: expected the one key `{KEY}` (see mucr/pipeline_sprites)")
    refuse_secrets(settings_of_structure(str(path), KEY, path.read_text(encoding="utf-8")))
    described = dict(content[KEY])
    described["init_args"] = {**described.get("init_args", {}), **(override or {})}
    if captions is not None:
        described["init_args"]["captions"] = captions
    import_named(set(_class_names(described)))

    from ..modules.descriptions import build_described
    from ..modules.mucr.construction import BenchmarkBuilder

    sys.path.insert(0, str(Path.cwd()))  # a recipe may name classes of the folder it is run in
    builder = build_described(BenchmarkBuilder, described, str(path))
    try:
        annotations = builder.build(out, say=note)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; the same command goes on in {out}") from None
    note(f"wrote {annotations}")


def _class_names(value: Any) -> Iterator[str]:
    """Names of the classes in a description."""
    if isinstance(value, dict):
        if isinstance(value.get("class_path"), str):
            yield value["class_path"]
        for item in value.values():
            yield from _class_names(item)
