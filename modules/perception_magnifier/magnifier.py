"""Perception Magnifier (arXiv 2503.10183): what the model looks at is enlarged before it answers.

Shapes: B questions, L length so far, C image tokens of a question (all its images), V vocabulary;
images (3, H, W), their maps (h, w).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from .attention_maps import AttentionMaps, MapSettings
from .branch import Branch
from .perception_map import upsample, without_padding
from .strategy import Asked, DecodingStrategy, Look, Region, Session
from .warp import Marginal, Warp, coordinates, marginals, sample, shared_density
from .watching import Watch

Update = Literal["every_token", "first_token"] | int
Coordinates = tuple[Tensor, Tensor]
MapSource = Literal["attention", "oracle", "shuffled", "uniform"]
ROUNDING = 1e-6  # pixels
ORACLE_MARGIN = 4 / 112  # around a box, as a share of the image
ORACLE_BACKGROUND = 1 / 6


class PerceptionMagnifier(DecodingStrategy):
    """Warps the original image so that what the model attends to is larger, and asks about that.

    At each update the question is asked about the original image; a map is made of the last token's
    attention; the image is warped in its own resolution and encoded; the next token is taken from a
    pass over the warped image. The original image's cache is what goes on, so that warps are never
    composed. Until the next update the warped image's own cache goes on.

    Defaults are the paper's; for LLaVA-1.5 it has `start_layer` 12.

    Args:
        maps: How attention becomes a map.
        marginal: What the map is reduced to along each axis.
        warp: "anchored", or the released code's "reference", see `warp`.
        floor: Added to densities whose largest value is 1, which limits the magnification.
        isotropic: One density for both axes, which keeps shapes better.
        update: When the image is warped anew: "every_token", "first_token" (the same first token
            for questions of one word, at much less cost), or each so many tokens.
        contrast: lambda of logits + lambda (logits - logits of the original image).
        reuse_tol: While no pixel is sampled farther than this (in pixels) from where it was, the
            last warped image's cache goes on; and the original's where the warp is as good as
            none. Negative: never.
        map_source: Controls. "oracle": the boxes of what is asked about; "shuffled": the same map,
            moved around by chance; "uniform": no warp, through all the same steps.
        resolution: "image", or the control "encoder": the warp magnifies pixels that are left after
            resizing, so that nothing new is seen.

    Raises:
        ValueError: A number is out of its range.
    """

    name = "pm"
    needs_attention = True

    def __init__(
        self,
        maps: MapSettings | None = None,
        marginal: Marginal = "max",
        warp: Warp = "anchored",
        floor: float = 0.0,
        isotropic: bool = False,
        update: Update = "every_token",
        contrast: float = 0.0,
        reuse_tol: float = 0.0,
        map_source: MapSource = "attention",
        resolution: Literal["image", "encoder"] = "image",
    ) -> None:
        if isinstance(update, int) and update < 1:
            raise ValueError(f"update: every {update} tokens, expected 1 or more")
        if floor < 0:
            raise ValueError(f"floor: {floor}, expected 0 or more")
        self.maps = MapSettings() if maps is None else maps
        self.marginal, self.warp, self.floor, self.isotropic = marginal, warp, floor, isotropic
        self.update, self.contrast, self.reuse_tol = update, contrast, reuse_tol
        self.map_source, self.resolution = map_source, resolution

    def start(self, asked: Asked) -> Session:
        """See `DecodingStrategy`."""
        return _Magnified(self, asked)

    def is_due(self, num_answered: int) -> bool:
        """Says whether the image is warped anew before a token."""
        if self.update == "first_token":
            return num_answered == 0
        return num_answered % (1 if self.update == "every_token" else self.update) == 0

    def coordinates(self, map_hw: Tensor, size: tuple[int, int], content: Region) -> Coordinates:
        """Returns where the columns and rows of a warped image are taken from, (1, W) and (1, H).

        Args:
            map_hw: In [0, 1].
            size: H and W.
            content: What is no padding.
        """
        pixels = upsample(map_hw, size, self.maps.upsample)
        if self.maps.mask_padding:
            pixels = without_padding(pixels, content)
        x, y = marginals(pixels[None], self.marginal)
        x, y = (axis / axis.amax().clamp(min=1e-12) + self.floor for axis in (x, y))
        x, y = shared_density(x, y) if self.isotropic else (x, y)
        return coordinates(x, self.warp), coordinates(y, self.warp)

    def warp_image(self, image: Tensor, at: Coordinates) -> Tensor:
        """Returns an image with columns and rows where `coordinates` says."""
        outside: Literal["border", "black"] = "border" if self.warp == "anchored" else "black"
        return sample(image[None], *at, outside)[0]


class _Magnified(Session):
    """The original image's branch, and one over warped images."""

    def __init__(self, strategy: PerceptionMagnifier, asked: Asked) -> None:
        self.strategy, self.asked = strategy, asked
        self.images = asked.originals("Perception Magnifier")
        if strategy.resolution == "encoder":
            self.images = [[_resized(x, asked.network) for x in some] for some in self.images]
        self.plain = asked.branch(asked.questions)
        self.maps = AttentionMaps(strategy.maps, asked, self.plain)
        self.generators = asked.generators("shuffle")
        self.answered: list[Tensor] = []
        self.warped: Branch | None = None
        # By question the warps of its images: what is wanted (none: the originals will do), and
        # what `warped` shows.
        self.wanted: dict[int, list[Coordinates]] = {}
        self.shown: dict[int, list[Coordinates]] = {}

    def append(self, token_B: Tensor) -> None:
        """See `Session`."""
        self.answered.append(token_B)
        self.plain.append(token_B)
        if self.warped is not None:
            self.warped.append(token_B[self.warped.rows.to(token_B.device)])

    def next_logits(self, active_B: Tensor) -> Tensor:
        """See `Session`."""
        contrast = self.strategy.contrast
        active = active_B.nonzero()[:, 0].tolist()
        is_due = self.strategy.is_due(len(self.answered))
        plain_BV: Tensor | None = None
        if is_due or contrast or not all(self.wanted[row] for row in active):
            watch = self.maps.watch() if is_due else None
            plain_BV = self.plain.forward(active_B, watch)
            if watch is not None:
                self._look(watch, active_B, active)
        rows = [row for row in active if self.wanted[row]]
        if not rows:
            assert plain_BV is not None
            return plain_BV
        warped_RV = self._ask_warped(rows, active)
        if contrast:
            assert plain_BV is not None
            warped_RV = warped_RV + contrast * (warped_RV - plain_BV[rows])
        if plain_BV is None:
            plain_BV = warped_RV.new_zeros(len(active_B), warped_RV.shape[1])
        return plain_BV.index_copy(0, torch.tensor(rows, device=warped_RV.device), warped_RV)

    def _look(self, watch: Watch, active_B: Tensor, active: list[int]) -> None:
        """Decides on the warps of all questions that are not yet answered."""
        heat, rounds_B = self.maps.refined(watch, active_B)
        tolerance = self.strategy.reuse_tol
        if tolerance >= 0:
            tolerance += ROUNDING
        looks = []
        for row in active:
            maps = [self._map(row, index, part) for index, part in enumerate(heat[row])]
            warps = [
                self.strategy.coordinates(part, (image.shape[1], image.shape[2]), region)
                for part, image, region in zip(
                    maps, self.images[row], self.asked.content[row], strict=True
                )
            ]
            shown = self.shown.get(row)
            if tolerance >= 0 and all(_moved(warp) <= tolerance for warp in warps):
                self.wanted[row] = []
            elif shown and all(
                _moved(warp, old) <= tolerance for warp, old in zip(warps, shown, strict=True)
            ):
                self.wanted[row] = shown
            else:
                self.wanted[row] = warps
            if self.looks is None:
                pictures = zip(self.images[row], warps, strict=True)
                parts = zip(heat[row], maps, pictures, strict=True)
                looks.append(
                    [
                        Look(h, m, self.strategy.warp_image(*picture), int(rounds_B[row]))
                        for h, m, picture in parts
                    ]
                )
        if self.looks is None:
            self.looks = looks

    def _map(self, row: int, index: int, heat_hw: Tensor) -> Tensor:
        """Returns the perception map of an image, in [0, 1], of attention or of a control."""
        source = self.strategy.map_source
        if source == "uniform":
            return torch.ones_like(heat_hw)
        if source == "oracle":
            if self.asked.boxes is None:
                raise ValueError("map_source: oracle needs generate(..., boxes=...)")
            image = self.images[row][index]
            return oracle_map(self.asked.boxes[row][index], (image.shape[1], image.shape[2]))
        found = self.strategy.maps.enhanced(heat_hw)
        if source == "shuffled":
            shifts = [
                int(torch.randint(size, (), generator=self.generators[row])) for size in found.shape
            ]
            found = found.roll(shifts, (0, 1))
        return found

    def _ask_warped(self, rows: list[int], active: list[int]) -> Tensor:
        """Returns the next logits of questions whose images are warped, (rows, V).

        Args:
            rows: These questions.
            active: Those that are not yet answered: what the branch shows of them is kept, also
                while their originals do.
        """
        stale = [row for row in rows if self.shown.get(row) is not self.wanted[row]]
        self.shown = {row: at for row, at in self.shown.items() if row in active}
        kept = [row for row in self.shown if row not in stale]
        if not kept or self.warped is None:
            self.warped = self._new_branch(stale)
            keep = self.strategy.reuse_tol >= 0 or self.strategy.update != "every_token"
            logits_RV = self.warped.forward(_among(stale, self.warped), keep=keep)
        else:
            places = [place for place, row in enumerate(self.warped.rows.tolist()) if row in kept]
            self.warped.select(torch.tensor(places, device=self.warped.mask.device))
            logits_RV = self.warped.forward(_among(rows, self.warped))
            if stale:
                other = self._new_branch(stale)
                logits_RV = torch.cat([logits_RV, other.forward(_among(stale, other))])
                self.warped.join(other)
        order = {row: place for place, row in enumerate(self.warped.rows.tolist())}
        return logits_RV[[order[row] for row in rows]]

    def _new_branch(self, rows: list[int]) -> Branch:
        """Begins a branch over the warped images of some questions."""
        warped = []
        for row in rows:
            self.shown[row] = self.wanted[row]
            pairs = zip(self.images[row], self.wanted[row], strict=True)
            warped.append([self.strategy.warp_image(image, at) for image, at in pairs])
        seen = self.asked.see(warped, rows)
        questions = [
            self.asked.questions[row].with_images(images)
            for row, images in zip(rows, seen, strict=True)
        ]
        branch = self.asked.branch(questions, torch.tensor(rows))
        branch.start_like(self.plain)
        for token_B in self.answered:
            branch.append(token_B[rows])
        return branch


def oracle_map(boxes_N4: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns the map of somebody who knows where to look, (H, W): 1 in boxes, little elsewhere.

    Args:
        boxes_N4: As shares of the image; none: the map is even.
        size: H and W.
    """
    height, width = size
    found = torch.full(size, ORACLE_BACKGROUND if len(boxes_N4) else 1.0)
    margin = torch.tensor([-ORACLE_MARGIN, -ORACLE_MARGIN, ORACLE_MARGIN, ORACLE_MARGIN])
    scale = torch.tensor([width, height, width, height])
    ends = ((boxes_N4.cpu() + margin) * scale).round().long().clamp(min=0)
    for left, top, right, bottom in ends.tolist():
        found[top:bottom, left:right] = 1
    return found


def _moved(warp: Coordinates, before: Coordinates | None = None) -> float:
    """Returns how far, in pixels, a warp samples from where another does, or none would."""
    if before is None:
        before = tuple(torch.arange(at.shape[1], device=at.device)[None] for at in warp)  # type: ignore[assignment]
    assert before is not None
    distances = [(at - old).abs().max() for at, old in zip(warp, before, strict=True)]
    return float(torch.stack(distances).max().nan_to_num(nan=torch.inf))


def _among(rows: list[int], branch: Branch) -> Tensor:
    """Marks the branch's rows that are among these."""
    return torch.isin(branch.rows, torch.tensor(rows)).to(branch.mask.device)


def _resized(image: Tensor, network: PreTrainedModel) -> Tensor:
    """Resizes an image to what the vision tower gets."""
    side = getattr(network.config.vision_config, "image_size", None)
    if not isinstance(side, int):
        raise ValueError(
            f"resolution: encoder needs a vision tower of one image size, {type(network).__name__} "
            "has none"
        )
    resized = F.interpolate(
        image[None], (side, side), mode="bicubic", antialias=True, align_corners=False
    )
    return resized[0].clamp(0, 1)
