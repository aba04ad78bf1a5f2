"""Multiple-choice questions about scenes of shapes, made and not collected."""

from collections.abc import Iterator, Sequence
from typing import Literal, cast, get_args

import numpy as np
from PIL import Image

from ...modules.visual_reasoning.question import Question
from ..scenes import ObjectScenes
from ..scenes.questions import ask, where
from ..scenes.scene import SPLITS, Scene, Split, to_pil
from .module import Found, ReasoningDataModule

SceneTask = Literal["what", "colour", "where", "place"]
TASK = "Someone looks at a picture of three shapes. Answer the question about it."
QUARTERS = ("top left", "top right", "bottom left", "bottom right")
NUM_OPTIONS = 4


class SceneReasoningDataModule(ReasoningDataModule):
    """Questions with four options about scenes of shapes.

    The sets are `scenes_<task>`: "what" is the red shape, what "colour" is the circle, "where" is
    the red shape; and "place": where is the circle, which takes two steps for a captioner that was
    trained for the other three. Wrong options are what other shapes of the scene are, as far as
    there are such: who mixes shapes up is wrong. The questions about one scene are a group.

    Args:
        scenes: Where the scenes come from: drawn shapes.
        tasks: Which questions are asked about each scene.
        num_scenes: How many scenes.
        split: Of the scenes.
        **settings: Those of `ReasoningDataModule`; there is no `image_dir`.

    Raises:
        ValueError: Scenes of digits, an unknown task, or a number out of range.
    """

    makes_pictures = True

    def __init__(
        self,
        scenes: ObjectScenes,
        tasks: Sequence[SceneTask] = ("what", "colour", "where", "place"),
        num_scenes: int = 100,
        split: Literal["val", "test"] = "test",
        batch_size: int = 64,
        max_groups: int | None = None,
        shuffle_options: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            max_groups=max_groups,
            shuffle_options=shuffle_options,
            seed=seed,
        )
        if scenes.objects != "shapes":
            raise ValueError("scenes: expected shapes, set scenes.init_args.objects to shapes")
        unknown = sorted(set(tasks) - set(get_args(SceneTask)))
        if unknown or not tasks:
            raise ValueError(f"tasks: {unknown or 'none'}, expected some of {get_args(SceneTask)}")
        if num_scenes < 1:
            raise ValueError(f"num_scenes must be 1 or more, got {num_scenes}")
        self.scenes, self.tasks, self.num_scenes = scenes, list(tasks), num_scenes
        self.split: Split = split

    def read(self) -> Iterator[Found]:
        """See `ReasoningDataModule`."""
        for number in range(self.num_scenes):
            scene = self._scene(str(number))
            for task in self.tasks:
                yield self._question(scene, number, task)

    def picture(self, name: str) -> Image.Image:
        """See `ReasoningDataModule`."""
        return to_pil(self._scene(name).render())

    def _scene(self, name: str) -> Scene:
        number = int(name)
        return self.scenes.scene(
            self.split, number, self.scenes.sizes[number % len(self.scenes.sizes)]
        )

    def _question(self, scene: Scene, number: int, task: SceneTask) -> Question:
        key = (self.scenes.seed, SPLITS[self.split], number, 3 + get_args(SceneTask).index(task))
        rng = np.random.default_rng(key)
        if task == "place":
            item = scene.objects[int(rng.integers(len(scene.objects)))]
            text, answer = f"Where is the {item.kind}?", where(scene, item)
        else:
            asked = ask(scene, task, rng, self.scenes.noun, self.scenes.kinds)
            text, answer = asked.text, asked.answer
        options = [answer, *self._wrong(scene, task, answer, rng)]
        return Question(
            id=str(number),
            set=f"scenes_{task}",
            task=TASK,
            text=text,
            images=(str(number),),
            options=tuple(options),
            answers=(0,),
            group=str(number),
        )

    def _wrong(
        self, scene: Scene, task: SceneTask, answer: str, rng: np.random.Generator
    ) -> list[str]:
        """Three wrong options: those of other shapes first."""
        if task == "what":
            here, known = [item.kind for item in scene.objects], self.scenes.kinds
        elif task == "colour":
            here, known = [item.colour for item in scene.objects], self.scenes.colours
        else:
            here, known = [], list(QUARTERS)
        others = [name for name in here if name != answer]
        absent = [name for name in known if name not in (answer, *here)]
        missing = NUM_OPTIONS - 1 - len(others)
        drawn = rng.permutation(len(absent))[: max(missing, 0)]
        return cast(list[str], [*others, *(absent[place] for place in drawn)])[: NUM_OPTIONS - 1]
