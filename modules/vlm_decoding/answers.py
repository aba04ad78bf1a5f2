"""What was answered, as plain records on disk: a question that has an answer is not asked again."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

NUM_SAMPLES = 1024  # values of each weight that tell networks apart

# A record as JSON holds it: `key`, `strategy`, `set`, `question_id`, `image`, `category`, `prompt`,
# `text`, `label`, `p_yes` and `p_no` (of the first token), `hit` (whether the map peaks in a box of
# what is asked about; None where there is no map or box), `seconds`, `peak_bytes`, and the numbers
# of `Costs`.
Answer = dict[str, Any]


def network_digest(network: nn.Module) -> str:
    """Returns what tells a network's weights from others: a hash of samples of each of them."""
    whole = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        flat = weight.detach().flatten()
        step = max(1, flat.numel() // NUM_SAMPLES)
        whole.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        whole.update(flat[::step].float().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


def plain_settings(value: Any) -> Any:
    """Returns an object's class and settings as JSON values, to tell it from others."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain_settings(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_settings(item) for item in value]
    if hasattr(value, "__dict__"):
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        return {"class": name, **plain_settings(vars(value))}
    return value


def answer_key(*parts: Any) -> str:
    """Returns a hash of all that an answer depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
