"""A matcher of causes and effects that is trained: what MuCR asks, without a language model.

Shapes: G groups, K siblings of a group, F features, D width of the embeddings.
"""

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW
from torchmetrics import MeanMetric

from ..optimization import configure_optimizers, save_plain_hyperparameters
from ..sharding import shard_over_devices
from ..training_progress import ProgressModule, TrainingProgress
from ..visual_reasoning import ReasoningScores, Row, chance_of, logged
from .baselines import BASELINES
from .figures import matches_figure
from .image_encoder import SmallConvNet
from .pair import CausalPair
from .phrases import HashedPhrases

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Sees = Literal["both", "cause", "effect", "nothing"]


class SiameseMatcher(ProgressModule):
    """Learns which effect belongs to which cause, and which phrase names the link.

    One image encoder for both pictures. Matching: the embedding of a cause is closer to that of its
    effect than to those of the effect's siblings (InfoNCE within each group, both ways). Phrases:
    the two pictures together are closer to the cue than to the false cues. It is a reference beside
    the scores of vision-language models: it finds what is alike, which needs no causal reasoning.

    A batch has `images` (G, K, 2, 3, S, S) in [0, 1], of cause and effect; `asked` (G, K) bool,
    whether a pair is asked about; `pairs`, G lists of K `CausalPair`; `groups`, their names.

    Logged are `val/loss` and, for the tasks `c2e` (which effect?), `e2c` (which cause?) and, if
    learned, `cue`: `<val or test>/<task>/accuracy` and, in testing, `group_accuracy` (all pairs of
    a group are right), both with `_low` and `_high` (95 %, whole groups drawn again), `_n` and
    `_chance`. Testing adds `histogram` and `pixels`, which match by colours and by pixels alone. A
    pair is right if its own option is closer than each other one; a tie is wrong.

    Args:
        image_encoder: Maps (N, 3, S, S) to (N, `num_features`): `SmallConvNet`, or any model of
            timm made with `num_classes: 0`.
        embed_dim: D.
        temperature: Of the softmax over options.
        match_weight: Of the matching loss; 0 learns phrases alone.
        cue_weight: Of the loss of phrases; 0 learns none.
        cue_sees: Which pictures the choice of the phrase is made from. "nothing" is the control: a
            choice by the words alone.
        optimizer: Makes the optimizer.
        lr_scheduler: Makes the schedule.

    Raises:
        ValueError: A number out of range; from a step, pictures are missing or the phrases of
            pairs are not of one number.
    """

    def __init__(
        self,
        image_encoder: nn.Module | None = None,
        embed_dim: int = 64,
        temperature: float = 0.1,
        match_weight: float = 1.0,
        cue_weight: float = 0.0,
        cue_sees: Sees = "both",
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=2e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["image_encoder"])
        save_plain_hyperparameters(self)
        if embed_dim < 1:
            raise ValueError(f"embed_dim must be 1 or more, got {embed_dim}")
        if temperature <= 0:
            raise ValueError(f"temperature must be more than 0, got {temperature}")
        if min(match_weight, cue_weight) < 0 or match_weight + cue_weight == 0:
            raise ValueError(
                f"match_weight {match_weight} and cue_weight {cue_weight}: expected 0 or more, and "
                "one of them more than 0"
            )
        self.temperature = temperature
        self.match_weight, self.cue_weight, self.cue_sees = match_weight, cue_weight, cue_sees
        self.make_optimizer, self.make_lr_scheduler = optimizer, lr_scheduler
        self.image_encoder = SmallConvNet() if image_encoder is None else image_encoder
        width = int(self.image_encoder.num_features)  # type: ignore[arg-type] # as timm's models
        self.match_head = nn.Linear(width, embed_dim) if match_weight else None
        self.cue_head, self.phrases = None, None
        if cue_weight:
            hidden = nn.Linear(2 * width, 2 * embed_dim)
            self.cue_head = nn.Sequential(hidden, nn.ReLU(), nn.Linear(2 * embed_dim, embed_dim))
            self.phrases = HashedPhrases(embed_dim)
        self.configure_metrics()

    def configure_metrics(self) -> None:
        """Creates the metrics, and the counter that a checkpoint carries."""
        self.val_scores, self.test_scores = ReasoningScores(), ReasoningScores()
        self.val_loss = MeanMetric()
        self.progress = TrainingProgress(unit="groups", loss_unit="nats")
        self._example: tuple[Tensor, Tensor] | None = None

    def configure_model(self) -> None:
        """Shards the networks, which the constructor has built."""
        self.shard_network()

    def shard_network(self) -> None:
        """Shards them where a strategy asks for it; callbacks change layers before."""
        parts = (self.image_encoder, self.match_head, self.cue_head, self.phrases)
        shard_over_devices(self, [part for part in parts if part is not None])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds optimizer and schedule."""
        return configure_optimizers(self, self.make_optimizer, self.make_lr_scheduler)

    # What is compared

    def forward(self, images_GK2CHW: Tensor) -> Tensor:
        """Returns how close each cause is to each effect of its group, (G, K, K) in [-1, 1]."""
        return self._similarities(self._features(images_GK2CHW))

    def _features(self, images_GK2CHW: Tensor) -> Tensor:
        """Returns the encoder's features, (G, K, 2, F)."""
        features_NF: Tensor = self.image_encoder(images_GK2CHW.flatten(0, 2))
        return features_NF.reshape(*images_GK2CHW.shape[:3], -1)

    def _similarities(self, features_GK2F: Tensor) -> Tensor:
        assert self.match_head is not None
        embeddings_GK2D = F.normalize(self.match_head(features_GK2F).float(), dim=-1)
        return embeddings_GK2D[:, :, 0] @ embeddings_GK2D[:, :, 1].mT

    def _cue_scores(self, features_GK2F: Tensor, pairs: list[list[CausalPair]]) -> Tensor:
        """Returns the score of each phrase, (G, K, P); the cue comes first."""
        assert self.cue_head is not None
        assert self.phrases is not None
        texts = [(pair.cue, *pair.false_cues) for group in pairs for pair in group]
        numbers = {len(phrases) for phrases in texts}
        if len(numbers) != 1:
            raise ValueError(f"pairs have {sorted(numbers)} phrases; expected one number for all")
        keeps_2 = features_GK2F.new_tensor(
            [self.cue_sees in ("both", "cause"), self.cue_sees in ("both", "effect")]
        )
        seen_GKF = (features_GK2F * keeps_2[:, None]).flatten(2)
        wanted_GKD = F.normalize(self.cue_head(seen_GKF).float(), dim=-1)
        phrases_NPD = F.normalize(self.phrases(texts).float(), dim=-1)
        phrases_GKPD = phrases_NPD.reshape(*wanted_GKD.shape[:2], *phrases_NPD.shape[1:])
        return torch.einsum("gkd,gkpd->gkp", wanted_GKD, phrases_GKPD)

    def _outputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Returns by task the scores of options, with the right one on top: (G, K, options)."""
        if "images" not in batch:
            raise ValueError("the matcher compares tensors: set data.init_args.image_size")
        features_GK2F = self._features(batch["images"])
        found = {}
        if self.match_head is not None:
            similarities_GKK = self._similarities(features_GK2F)
            found = {
                "c2e": own_first(similarities_GKK),
                "e2c": own_first(similarities_GKK.mT),
            }
        if self.cue_head is not None:
            found["cue"] = self._cue_scores(features_GK2F, batch["pairs"])
        return found

    def _losses(self, outputs: dict[str, Tensor], asked_GK: Tensor) -> Tensor:
        """Returns the weighted loss of each pair that is asked about, (n,)."""
        weights = {"c2e": self.match_weight / 2, "e2c": self.match_weight / 2}
        weights["cue"] = self.cue_weight
        total_N = torch.zeros(())
        for task, scores_GKO in outputs.items():
            scores_NO = scores_GKO[asked_GK] / self.temperature
            target_N = torch.zeros(len(scores_NO), dtype=torch.int64, device=scores_NO.device)
            total_N = total_N.to(scores_NO) + weights[task] * F.cross_entropy(
                scores_NO, target_N, reduction="none"
            )
        return total_N

    # Training

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Returns the loss of one batch."""
        loss = self._losses(self._outputs(batch), batch["asked"]).mean()
        self.progress.step(loss.detach()[None], len(batch["asked"]) * self.trainer.world_size)
        if self.is_logging_step(batch_idx):
            reduce = self.trainer.strategy.reduce
            self.log("train/loss", self.progress.mean_losses(reduce)[0], prog_bar=True)
            self.log("train/groups_per_second", self.progress.tokens_per_second())
        return loss

    # Evaluation

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Adds one batch to the validation metrics."""
        outputs = self._outputs(batch)
        self.val_loss.update(self._losses(outputs, batch["asked"]))
        self._count(self.val_scores, batch, outputs)

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics."""
        loss = self.val_loss.compute()
        self.val_loss.reset()
        self.log("val/loss", loss, prog_bar=True, sync_dist=True)
        for name, score in self.val_scores.compute().items():
            if name.endswith("/accuracy") and "=" not in name:
                bar = name == "c2e/accuracy"
                self.log(f"val/{name}", score.value, prog_bar=bar, sync_dist=True)
        self.val_scores.reset()
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.progress.add_point("val", loss.item())

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Adds one batch to the scores; returns a record for each pair."""
        outputs = self._outputs(batch)
        if self._example is None and "c2e" in outputs:
            self._example = (batch["images"][0].cpu(), self(batch["images"][:1])[0].cpu())
        for name, baseline in BASELINES.items():
            outputs[name] = own_first(baseline(batch["images"]))
        return {"records": self._count(self.test_scores, batch, outputs)}

    def on_test_epoch_end(self) -> None:
        """Logs the scores."""
        for name, value in logged(self.test_scores.compute()).items():
            if not name.endswith("_rate"):  # of answers that cannot be read
                # Equal on all devices already; sync_dist only tells Lightning so.
                self.log(f"test/{name}", value, sync_dist=True)
        self.test_scores.reset()

    def _count(
        self, scores: ReasoningScores, batch: dict[str, Any], outputs: dict[str, Tensor]
    ) -> list[dict[str, Any]]:
        """Adds which pairs are right; returns a record for each."""
        places = batch["asked"].nonzero().tolist()
        pairs = [batch["pairs"][g][k] for g, k in places]
        groups = [batch["groups"][g] for g, _ in places]
        records = [
            {"id": pair.id, "row": pair.category, "group": group}
            for pair, group in zip(pairs, groups, strict=True)
        ]
        sizes = {
            name: int(asked.sum())
            for name, asked in zip(batch["groups"], batch["asked"], strict=True)
            if asked.all()
        }
        rows: list[Row] = []
        for task, scores_GKO in outputs.items():
            scores_NO = scores_GKO[batch["asked"]]
            right = (scores_NO[:, :1] > scores_NO[:, 1:]).all(dim=1).double().cpu()
            chance = chance_of(scores_NO.shape[1], 1)
            for record, pair, value in zip(records, pairs, right.tolist(), strict=True):
                record[f"{task}/accuracy"] = value
                rows.append(_row(task, pair, record["group"], sizes, value, chance))
        scores.update(rows)
        return records

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """Returns for each pair the effect and the phrase that are closest."""
        features_GK2F = self._features(batch["images"])
        tables: dict[str, list[Any]] = {}
        if self.match_head is not None:
            tables["effect"] = self._similarities(features_GK2F).tolist()
        if self.cue_head is not None:
            tables["cue"] = self._cue_scores(features_GK2F, batch["pairs"]).tolist()
        records = []
        for g, k in batch["asked"].nonzero().tolist():
            pair: CausalPair = batch["pairs"][g][k]
            options = {
                "effect": [sibling.id for sibling in batch["pairs"][g]],
                "cue": [pair.cue, *pair.false_cues],
            }
            record: dict[str, Any] = {"id": pair.id, "group": batch["groups"][g]}
            for name, table in tables.items():
                row = table[g][k]
                record[name] = options[name][row.index(max(row))]
                record[f"{name}_scores"] = dict(zip(options[name], row, strict=True))
            records.append(record)
        return records

    # What a run leaves behind

    def run_info(self) -> dict[str, float | None]:
        """Returns sizes and the mean speed of this process's training, for `metrics.json`."""
        return {
            "num_parameters": sum(p.numel() for p in self.parameters()),
            "samples_seen": self.progress.tokens,
            "samples_per_second": self.progress.mean_tokens_per_second(),
        }

    def figures(self) -> dict[str, "Figure"]:
        """Returns the loss curves and, after a test, a group with its similarities."""
        found = {}
        if any(self.progress.curves.values()):
            found["loss"] = self.progress.figure()
        if self._example is not None:
            found["matches"] = matches_figure(*self._example)
        return found


def _row(
    task: str,
    pair: CausalPair,
    group: str,
    sizes: dict[str, int],
    value: float,
    chance: float | None,
) -> Row:
    """Returns what `ReasoningScores` counts of a choice; `sizes` are those of closed groups."""
    counts = [{"name": "accuracy", "unit": pair.id, "size": 1}]
    if group in sizes:
        counts.append({"name": "group_accuracy", "unit": group, "size": sizes[group]})
    return {
        "id": f"{task}/{pair.id}",
        "set": task,
        "group": group,
        "categories": {"category": pair.category, "style": pair.style},
        "counts": counts,
        "metric": "accuracy",
        "value": value,
        "chance": chance,
        "status": "ok",
        "warnings": [],
    }


def own_first(table_GKK: Tensor) -> Tensor:
    """Moves the diagonal of each square to the front of its rows: the right option comes first."""
    size = table_GKK.shape[-1]
    places_K = torch.arange(size, device=table_GKK.device)
    order_KK = (places_K[:, None] + places_K) % size
    return table_GKK.gather(-1, order_KK.expand_as(table_GKK))
