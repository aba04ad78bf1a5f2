"""Perception maps of questions that a model is being asked.

Shapes: B questions, L length so far, C image tokens of a question (all its images), V vocabulary; h
and w rows and columns of an image's map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .branch import Branch
from .perception_map import (
    HeadReduction,
    LayerReduction,
    aggregate_attention,
    box_smooth,
    check_layers,
    enhance,
    refine,
)
from .prompt import Question
from .strategy import Asked
from .views import join_views, views_of
from .watching import Watch, check_seen


@dataclass(frozen=True)
class MapSettings:
    """How attention becomes a perception map.

    Args:
        start_layer: The first layer that counts, from 1. None: 3 / 8 of the way, as 12 of 32.
        single_layer: That layer alone (the paper's ablation of its aggregation).
        head_reduction: Over heads.
        layer_reduction: Over layers.
        layer_divisor: "exact", or "repo": the released code divides a sum of n layers by n - 1.
        threshold: beta: refinement ends when the attention that is left sums to this.
        max_iterations: Of refinement; 0: none.
        isolation: From the second token on, "cached": found tokens are hidden from the last token
            alone; "full": from all, by a pass of everything.
        exit_criterion: "sum_attention" of the tokens that are left, or "probability": refinement
            ends when the probability of yes, with tokens hidden, is at most the threshold.
        drop_first_round: Leaves the first pass, which attention sinks dominate, out of the mean.
        alpha: Steepness of the map, in standard deviations.
        kernel_size: Cells that are averaged along each side; odd.
        upsample: Of the map to pixels: the paper says bilinear, the released code is bicubic.
        mask_padding: Padding gets the least of the map.
    """

    start_layer: int | None = None
    single_layer: bool = False
    head_reduction: HeadReduction = "max"
    layer_reduction: LayerReduction = "sum"
    layer_divisor: Literal["exact", "repo"] = "exact"
    threshold: float = 0.3
    max_iterations: int = 8
    isolation: Literal["cached", "full"] = "cached"
    exit_criterion: Literal["sum_attention", "probability"] = "sum_attention"
    drop_first_round: bool = False
    alpha: float = 10.0
    kernel_size: int = 3
    upsample: Literal["bilinear", "bicubic"] = "bilinear"
    mask_padding: bool = True

    def __post_init__(self) -> None:
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: {self.kernel_size} is not odd and positive")
        if self.max_iterations < 0:
            raise ValueError(f"max_iterations: {self.max_iterations}, expected 0 or more")

    def enhanced(self, heat_hw: Tensor) -> Tensor:
        """Returns the perception map of attention to cells, (h, w) in [0, 1]."""
        return box_smooth(enhance(heat_hw, self.alpha), self.kernel_size)


class AttentionMaps:
    """Makes maps of attention for a batch of questions, as `MapSettings` says.

    Args:
        settings: How.
        asked: The questions.
        branch: Asks them; its prompts have the images.
    """

    def __init__(self, settings: MapSettings, asked: Asked, branch: Branch) -> None:
        self.settings, self.asked, self.branch = settings, asked, branch
        network = asked.network
        num_layers = network.config.get_text_config().num_hidden_layers
        self.first = check_layers(settings.start_layer, num_layers)
        self.last = self.first if settings.single_layer else num_layers
        self.views = [[views_of(network, image) for image in q.images] for q in asked.questions]
        image_BL = branch.is_image
        counts_B = image_BL.sum(dim=1)
        if not counts_B.all():
            row = int(counts_B.argmin())
            raise ValueError(f"question {asked.ids[row]}: no image to look at")
        num_cells = int(counts_B.max())
        # The first `counts` of each row are its image tokens in order.
        self.places_BC = (~image_BL).int().argsort(dim=1, stable=True)[:, :num_cells]
        self.valid_BC = torch.arange(num_cells, device=image_BL.device) < counts_B[:, None]

    def watch(self) -> Watch:
        """A watch for a pass whose attention shall become a map."""
        return Watch(self.first, self.last)

    def heat(self, watch: Watch) -> Tensor:
        """Returns what the last query attends to, (B, C); 0 where there is no token."""
        rows = check_seen(watch, self.asked.network)
        settings = self.settings
        divisor = max(1, len(rows) - 1) if settings.layer_divisor == "repo" else None
        heat_BL = aggregate_attention(
            rows, settings.head_reduction, settings.layer_reduction, divisor
        )
        return heat_BL.gather(1, self.places_BC).masked_fill(~self.valid_BC, 0)

    def refined(self, watch: Watch, active_B: Tensor) -> tuple[list[list[Tensor]], Tensor]:
        """Returns a map of each image of each question, (h, w) each, and rounds (B,).

        Args:
            watch: Saw the branch's last pass.
            active_B: bool, the questions that are asked; others have no maps.
        """
        settings = self.settings

        def look_again(hidden_BC: Tensor, asked_B: Tensor) -> tuple[Tensor, Tensor]:
            hidden_BL = torch.zeros_like(self.branch.mask, dtype=torch.bool)
            hidden_BL.scatter_(1, self.places_BC, hidden_BC)
            again = self.watch()
            whole = settings.isolation == "full"
            logits_BV = self.branch.look_again(hidden_BL, asked_B, again, whole=whole)
            heat_BC = self.heat(again)
            if settings.exit_criterion == "sum_attention":
                left_B = heat_BC.masked_fill(hidden_BC, 0).sum(dim=1)
            else:
                left_B = probability_of_yes(logits_BV, self.asked.processor)
            return heat_BC, left_B <= settings.threshold

        heat_BC = self.heat(watch)
        valid_BC = self.valid_BC & active_B[:, None]
        limit, drop = settings.max_iterations, settings.drop_first_round
        map_BC, rounds_B = refine(heat_BC, valid_BC, look_again, limit, drop)
        maps = [
            self._split(map_BC[row], row) if is_active else []
            for row, is_active in enumerate(active_B.tolist())
        ]
        return maps, rounds_B

    def _split(self, values_C: Tensor, row: int) -> list[Tensor]:
        """Makes one map of each image of a question."""
        views = self.views[row]
        counts = [len(image.features) for image in self.asked.questions[row].images]
        parts = torch.split(values_C[: sum(counts)], counts)
        return [join_views(some, part) for some, part in zip(views, parts, strict=True)]


def attention_maps(
    asked: Asked, questions: Sequence[Question], settings: MapSettings
) -> list[list[Tensor]]:
    """Returns what is looked at when a batch is asked, (h, w) for each question and image.

    Args:
        asked: The batch.
        questions: What is asked about its images.
        settings: How.
    """
    branch = asked.branch(questions)
    maps = AttentionMaps(settings, asked, branch)
    watch = maps.watch()
    active_B = torch.ones(len(questions), dtype=torch.bool, device=branch.mask.device)
    branch.forward(active_B, watch, keep=settings.max_iterations > 1)
    return maps.refined(watch, active_B)[0]


def probability_of_yes(logits_BV: Tensor, processor: Any) -> Tensor:
    """Returns the probability of all tokens that say yes, in whatever spelling, (B,).

    Raises:
        ValueError: There is no processor, or it knows no such token.
    """
    if processor is None:
        raise ValueError("exit_criterion: probability needs generate(..., processor=...)")
    tokenizer = processor.tokenizer
    vocabulary = range(min(len(tokenizer), logits_BV.shape[1]))
    yes = [i for i in vocabulary if tokenizer.decode([i]).strip().lower() == "yes"]
    if not yes:
        raise ValueError("exit_criterion: probability needs a tokenizer that has a token for yes")
    return logits_BV.softmax(dim=-1)[:, yes].sum(dim=1)
