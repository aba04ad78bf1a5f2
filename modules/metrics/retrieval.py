"""Retrieval between two sets of embeddings, in pieces that fit into memory.

Shapes: Q queries, N candidates, D width, P pairs of a query and a candidate that belong together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


def best_ranks(
    query_QD: Tensor,
    candidate_ND: Tensor,
    pair_P2: Tensor,
    chunk_size: int = 1024,
) -> Tensor:
    """Returns the rank of each query's best right candidate, (Q,) float64, 0 for the first place.

    A rank is the number of wrong candidates that are more similar, and half of the wrong ones that
    are as similar: so it does not depend on an order, and equal embeddings are no success. Other
    right candidates of the query never count.

    Args:
        query_QD: Embeddings.
        candidate_ND: Embeddings.
        pair_P2: Numbers of query and candidate of each right pair, int64, in any order.
        chunk_size: Queries at a time.

    Raises:
        ValueError: A query has no right candidate.
    """
    num_right = torch.bincount(pair_P2[:, 0], minlength=len(query_QD))
    if (num_right == 0).any():
        missing = int((num_right == 0).nonzero()[0])
        raise ValueError(f"retrieval: query {missing} has no right candidate")
    ranks = []
    for first in range(0, len(query_QD), chunk_size):
        scores = query_QD[first : first + chunk_size] @ candidate_ND.T
        own = pair_P2[(pair_P2[:, 0] >= first) & (pair_P2[:, 0] < first + len(scores))]
        is_right = torch.zeros_like(scores, dtype=torch.bool)
        is_right[own[:, 0] - first, own[:, 1]] = True
        best = scores.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)
        above = ((scores > best) & ~is_right).sum(dim=1)
        ties = ((scores == best) & ~is_right).sum(dim=1)
        ranks.append(above.double() + 0.5 * ties.double())
    return torch.cat(ranks) if ranks else query_QD.new_zeros(0, dtype=torch.float64)


class PairRetrieval(Metric):
    """How often an image finds one of its texts among all texts, and a text its image.

    `compute` gives `image_to_text_r<K>` and `text_to_image_r<K>` for each K, shares in [0, 1]: of
    images one of whose texts is among the K most similar, of texts whose image is; and `median`
    ranks, from 1. Ranks are those of `best_ranks`.

    Embeddings of all processes are brought together at the end: (N, D) float32 on each.

    Args:
        top_k: The Ks.
    """

    full_state_update = False
    images: list[Tensor]
    texts: list[Tensor]
    image_ids: list[Tensor]
    text_ids: list[Tensor]

    def __init__(self, top_k: Sequence[int] = (1, 5, 10)) -> None:
        super().__init__()
        self.top_k = tuple(top_k)
        for name in ("images", "texts", "image_ids", "text_ids"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self, images_BD: Tensor, image_ids_B: Tensor, texts_TD: Tensor, text_ids_T: Tensor
    ) -> None:
        """Adds images and texts.

        Args:
            images_BD: Embeddings of length 1.
            image_ids_B: Unique numbers of the images, int64.
            texts_TD: Embeddings of length 1.
            text_ids_T: The number of the image that each text belongs to.
        """
        self.images.append(images_BD.float())
        self.texts.append(texts_TD.float())
        self.image_ids.append(image_ids_B)
        self.text_ids.append(text_ids_T)

    def compute(self) -> dict[str, Tensor]:
        """See the class."""
        images_ND, texts_TD = _joined(self.images), _joined(self.texts)
        ids, place_of = torch.unique(_joined(self.image_ids), return_inverse=True)
        # Numbers of images as places in `images_ND`.
        places = torch.empty_like(place_of).scatter_(
            0, place_of, torch.arange(len(place_of), device=place_of.device)
        )
        image_T = places[torch.searchsorted(ids, _joined(self.text_ids))]
        text_T = torch.arange(len(image_T), device=image_T.device)
        found = {
            "image_to_text": best_ranks(images_ND, texts_TD, torch.stack((image_T, text_T), 1)),
            "text_to_image": best_ranks(texts_TD, images_ND, torch.stack((text_T, image_T), 1)),
        }
        values = {}
        for name, rank_Q in found.items():
            for k in self.top_k:
                values[f"{name}_r{k}"] = (rank_Q < k).double().mean()
            values[f"{name}_median"] = rank_Q.median() + 1
        return values


def _joined(parts: list[Tensor] | Tensor) -> Tensor:
    return parts if isinstance(parts, Tensor) else torch.cat(parts)
