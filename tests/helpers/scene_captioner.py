"""A captioner that knows the scenes by their pixels: a rule for what others have to learn.

Unasked it names one of three shapes. Copied into a project, a recipe may name it.
"""

import hashlib
import os
import re
import time

from tenfold.datamodules.scenes import ObjectScenes
from tenfold.datamodules.scenes.questions import where
from tenfold.datamodules.scenes.scene import to_pil
from tenfold.modules.chat import ChatBackend, ChatResponse


def pixels(picture):
    return hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()


class SceneCaptioner(ChatBackend):
    """With `log`, a line for each request it was sent, as any process may ask."""

    supports_images = True

    def __init__(self, seed: int = 0, number: int = 60, log: str = "", seconds: float = 0.0):
        self.seed, self.number, self.log, self.seconds = seed, number, log, seconds

    @property
    def identity(self):
        return {"backend": "scene captioner", "seed": self.seed}

    def answer(self, requests, keep=None):
        if "_scenes" not in vars(self):
            scenes = ObjectScenes.caid(seed=self.seed, sizes=["large"])
            made = [scenes.scene("test", k, "large") for k in range(self.number)]
            self._scenes = {pixels(to_pil(scene.render())): scene for scene in made}
        for place, request in enumerate(requests):
            if self.log:
                with open(self.log, "a") as file:  # noqa: PTH123
                    file.write(f"{os.getpid()} {request.digest}\n")
            time.sleep(self.seconds)
            picture, prompt = request.turns[0].parts
            yield place, ChatResponse(self.describe(self._scenes[pixels(picture)], prompt))

    def describe(self, scene, prompt):
        if asked := re.fullmatch(r"What is the (\w+) shape\?", prompt):
            return next(o.kind for o in scene.objects if o.colour == asked[1])
        if asked := re.fullmatch(r"What colour is the (\w+)\?", prompt):
            return next(o.colour for o in scene.objects if o.kind == asked[1])
        if asked := re.fullmatch(r"Where is the (\w+) shape\?", prompt):
            return where(scene, next(o for o in scene.objects if o.colour == asked[1]))
        if prompt.startswith("Where is"):
            return "I do not know"
        item = scene.objects[scene.seed[2] % 3]
        return f"a {item.colour} {item.kind} {where(scene, item)} ."
