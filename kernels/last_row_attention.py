"""What the last query attends to, beside any attention kernel that does not tell.

Fused attention (SDPA, flash) never has the weights in memory. Those of the last query alone are one
product of a row and the keys, O(K) numbers per head where all are O(Q K): a model keeps its fast
kernel, and this runs beside it.

Shape suffixes: B sequences, H heads of queries, G heads of keys (H a multiple of G), Q queries, K
keys, D width of a head.
"""

import torch
from torch import Tensor


def last_row_attention(
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    mask: Tensor | None = None,
    scaling: float | None = None,
    gain_BK: Tensor | None = None,
) -> Tensor:
    """Returns the attention weights of the last query, (B, H, K).

    Args:
        query_BHQD: Floating point. The last query comes after all keys: it sees those that the mask
            does not hide.
        key_BGKD: Of the same dtype; head h reads keys h // (H / G).
        mask: Four axes that broadcast to (B, H, Q, K), or (B, K). bool or integers: nonzero
            counts. Floating point: added. None: all keys count.
        scaling: Of the products. None: 1 / sqrt(D).
        gain_BK: g of every key: a product s becomes s + g |s| before the softmax (PAI, arXiv
            2407.21771).

    Returns:
        float32, or float64 for such inputs. Exactly 0 where hidden; all 0 when everything is.

    Raises:
        ValueError: Shapes that do not fit.
    """
    batch, heads, _, width = query_BHQD.shape
    groups, num_keys = key_BGKD.shape[1:3]
    if len(key_BGKD) != batch or key_BGKD.shape[3] != width or heads % groups:
        raise ValueError(
            f"queries {tuple(query_BHQD.shape)} and keys {tuple(key_BGKD.shape)} do not fit: "
            "expected (B, H, Q, D) and (B, G, K, D) with H a multiple of G"
        )
    dtype = torch.float64 if query_BHQD.dtype == torch.float64 else torch.float32
    scale = width**-0.5 if scaling is None else scaling
    row_BGRD = query_BHQD[:, :, -1].to(dtype).view(batch, groups, heads // groups, width)
    scores_BHK = (row_BGRD * scale @ key_BGKD.to(dtype).mT).view(batch, heads, num_keys)
    if gain_BK is not None:
        scores_BHK = scores_BHK + gain_BK[:, None].to(dtype) * scores_BHK.abs()
    if mask is not None:
        if mask.dim() not in (2, 4) or mask.shape[-1] != num_keys:
            raise ValueError(
                f"mask {tuple(mask.shape)}: expected (B or 1, H or 1, Q or 1, {num_keys}) or "
                f"(B, {num_keys})"
            )
        row = mask[:, None] if mask.dim() == 2 else mask[:, :, -1]
        if row.is_floating_point():
            scores_BHK = scores_BHK + row.to(dtype)
        else:
            scores_BHK = scores_BHK.masked_fill(row == 0, -torch.inf)
    # A row without any key is 0 / 0.
    return scores_BHK.softmax(dim=-1).nan_to_num(nan=0.0)
