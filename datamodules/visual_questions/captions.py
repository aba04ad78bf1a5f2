"""CHAIR (Rohrbach et al. 2018): captions of COCO images, and what there is to see in them."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from .llava_bench import COCO_PREFIXES
from .module import QuestionDataModule, QuestionSet
from .questions import ImageFolder, VisualQuestion


class ChairDataModule(QuestionDataModule):
    """Asks for descriptions of COCO images whose objects and reference captions are known.

    One set, `chair/coco`. Batches are those of `QuestionDataModule`; the question id is COCO's
    image id; `extras` have what `ChairMetric` compares captions with: `objects` (categories of the
    annotated instances) and `references` (captions).

    Args:
        instances: COCO's `instances_val2014.json`.
        captions: COCO's `captions_val2014.json`.
        image_dir: Folder of the images.
        prompt: What is asked.
        num_images: Images, drawn at random from those of the captions; None: all.
        seed: Of the draw, 0 or more.
        **settings: Those of `QuestionDataModule`.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(
        self,
        instances: str,
        captions: str,
        image_dir: str,
        prompt: str = "Please describe this image in detail.",
        num_images: int | None = 500,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if num_images is not None and num_images < 1:
            raise ValueError(f"num_images must be 1 or more, got {num_images}")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        self.instances, self.captions = Path(instances).expanduser(), Path(captions).expanduser()
        self.image_dir = Path(image_dir).expanduser()
        self.prompt, self.num_images, self.seed = prompt, num_images, seed

    def read(self) -> list[QuestionSet]:
        """See `QuestionDataModule`."""
        captions = _read(self.captions, "images", "annotations")
        instances = _read(self.instances, "annotations", "categories")
        try:
            files = {image["id"]: image["file_name"] for image in captions["images"]}
            references = defaultdict(list)
            for row in captions["annotations"]:
                references[row["image_id"]].append(row["caption"])
            categories = {row["id"]: row["name"] for row in instances["categories"]}
            objects = defaultdict(set)
            for row in instances["annotations"]:
                objects[row["image_id"]].add(categories[row["category_id"]])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{self.captions}, {self.instances}: not COCO's: no {error}"
            ) from error
        chosen = sorted(files)
        if self.num_images is not None and self.num_images < len(chosen):
            rng = np.random.default_rng(self.seed)
            places = rng.permutation(len(chosen))[: self.num_images]
            chosen = sorted(chosen[place] for place in places.tolist())
        questions = [
            VisualQuestion(
                id=str(image),
                image=files[image],
                text=self.prompt,
                source=f"{self.captions}: image {image}",
                extra={"objects": sorted(objects[image]), "references": references[image]},
            )
            for image in chosen
        ]
        name = "chair/coco"
        images = ImageFolder(self.image_dir, COCO_PREFIXES)
        return [QuestionSet(name, self.keep(questions, name), images)]


def _read(path: Path, *keys: str) -> dict[str, Any]:
    """Reads a file of COCO annotations."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"COCO annotations {path} cannot be read: {error}") from error
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise ValueError(f"{path}: not COCO's annotations: no {', '.join(map(repr, missing))}")
    return dict(found)
