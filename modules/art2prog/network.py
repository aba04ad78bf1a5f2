"""The network of Art2Prog: a picture and what the program has drawn so far give the next token.

    image tokens  phi(I)                    (B, P, D)   prefix of the decoder
    x_t = W [token, line and slot of t ; psi(J)]        J: what the line before t's line left behind
    h = GPT2([phi(I), x_1 ... x_T])         causal; logits = W_o h

Pictures are shown as ink, white paper being 0. Were it 1, what the first layer makes of paper would
follow each change of its weights, faster than batch norm's running means do.

J of a line conditions tokens of later lines alone, so that nothing leaks. With the J of the true
program given, all positions are trained at once.

Shapes: B pictures, S their side, T tokens, N states (what lines left behind), P image tokens, D
width of the decoder, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GPT2Config, GPT2Model

from ..causal_lm import check_keys

ENCODER = {"model": "resnet18", "out_index": 3}
STATE_ENCODER = {
    "model": "resnet18",
    "layers": [1, 1, 1, 1],
    "channels": [16, 32, 64, 128],
}
DECODER = {"n_layer": 6, "n_embd": 384, "n_head": 6}
STATE_CHANNELS = 4  # colours on white, and alpha


class ProgramNetwork(nn.Module):
    """Image encoder, state encoder and decoder.

    Args:
        vocab_size: V.
        max_lines: Most lines of a program.
        max_slots: Most tokens of a line.
        image_size: S in pixels.
        encoder: Arguments of `timm.create_model` with `model`, its name, and `out_index`, which of
            its stages is the prefix: 2 has a token per 8 pixels and axis in a ResNet, 3 per 16.
        state_encoder: The same without `out_index` for J, of which one vector is made; None: J is
            not looked at.
        decoder: Arguments of `transformers.GPT2Config`.
        residual_channel: Whether the difference of picture and J is shown to the state encoder too.

    Raises:
        ValueError: timm is not installed, or an argument is unknown.
    """

    def __init__(
        self,
        vocab_size: int,
        max_lines: int,
        max_slots: int,
        image_size: int,
        encoder: Mapping[str, Any],
        state_encoder: Mapping[str, Any] | None,
        decoder: Mapping[str, Any],
        residual_channel: bool = False,
    ) -> None:
        super().__init__()
        self.residual_channel = residual_channel
        self.encoder = _timm_model("encoder", encoder, in_chans=3)
        channels = self.encoder.feature_info.channels()[-1]
        side = -(-image_size // self.encoder.feature_info.reduction()[-1])
        self.num_image_tokens = side * side
        width = int(decoder.get("n_embd", GPT2Config().n_embd))
        self.from_image = nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width))
        # As large as what they are added to: with GPT-2's 0.02 it would take long to find places.
        self.image_positions = nn.Parameter(torch.randn(self.num_image_tokens, width))
        self.tokens = nn.Embedding(vocab_size, width)
        self.lines = nn.Embedding(max_lines + 1, width)
        self.slots = nn.Embedding(max_slots, width)
        self.state_encoder: nn.Module | None = None
        num_features: int = 0
        if state_encoder is not None:
            in_chans = STATE_CHANNELS + 3 * residual_channel
            encoder_of_states = _timm_model("state_encoder", state_encoder, in_chans=in_chans)
            num_features = encoder_of_states.num_features
            self.state_encoder = encoder_of_states
        self.mix = nn.Linear(width + num_features, width)
        max_tokens = max_lines * max_slots + 1
        self.body = GPT2Model(decoder_config(decoder, self.num_image_tokens + max_tokens))
        del self.body.wte  # ours are `tokens`; a parameter without use breaks DDP
        self.head = nn.Linear(width, vocab_size)

    def no_weight_decay(self) -> set[str]:
        """Names parameters that are not decayed."""
        return {"image_positions"}

    def forward(
        self,
        image: Tensor,
        token: Tensor,
        line: Tensor,
        slot: Tensor,
        state: Tensor | None = None,
        state_index: Tensor | None = None,
        picture_index: Tensor | None = None,
    ) -> Tensor:
        """Returns logits of all positions, (B, T, V) float32.

        Args:
            image: (B, 3, S, S) in [0, 1].
            token: (B, T) int64, the token before each position.
            line: (B, T) int64, line of each position.
            slot: (B, T) int64, slot of each position.
            state: (N, 4, s, s) in [0, 1], all J of the batch; None without a state encoder.
            state_index: (B, T) int64, for each position which of them.
            picture_index: (N,) int64, picture of each state.
        """
        features = None
        if self.state_encoder is not None:
            assert state is not None
            assert state_index is not None
            features = self.encode_states(state, image, picture_index)[state_index]
        x_BTD = self._inputs(token, line, slot, features)
        prefix_BPD = self.encode_images(image)
        hidden = self.body(inputs_embeds=torch.cat((prefix_BPD, x_BTD), dim=1), use_cache=False)
        logits: Tensor = self.head(hidden.last_hidden_state[:, self.num_image_tokens :])
        return logits.float()

    def encode_images(self, image: Tensor) -> Tensor:
        """Returns the image tokens, (B, P, D)."""
        (features_BCHW,) = self.encoder(_channels_last(1 - image))
        tokens: Tensor = self.from_image(features_BCHW.flatten(2).mT) + self.image_positions
        return tokens

    def encode_states(
        self, state: Tensor, image: Tensor, picture_index: Tensor | None = None
    ) -> Tensor:
        """Returns a vector for each state, (N, F).

        Args:
            state: (N, 4, s, s) in [0, 1].
            image: (B, 3, S, S), for the residual.
            picture_index: (N,), the picture of each state.
        """
        assert self.state_encoder is not None
        # Beside the ink: alpha, 0 where there is nothing, and what is missing.
        seen = [1 - state[:, :3], state[:, 3:]]
        if self.residual_channel:
            small = nn.functional.interpolate(image, state.shape[-2:], mode="area")
            seen.append((small[picture_index] - state[:, :3]).abs())
        features: Tensor = self.state_encoder(_channels_last(torch.cat(seen, dim=1)))
        return features

    # Token by token

    def begin(self, image: Tensor, copies: int = 1) -> DynamicCache:
        """Returns a cache that knows the pictures, each `copies` times."""
        cache = DynamicCache(config=self.body.config)
        self.body(None, cache, inputs_embeds=self.encode_images(image), use_cache=True)
        if copies > 1:
            cache.batch_repeat_interleave(copies)
        return cache

    def step(
        self,
        cache: DynamicCache,
        token_B: Tensor,
        line_B: Tensor,
        slot_B: Tensor,
        features_BF: Tensor | None,
    ) -> Tensor:
        """Returns the logits of one more position, (B, V) float32; adds it to the cache."""
        features = None if features_BF is None else features_BF[:, None]
        x_B1D = self._inputs(token_B[:, None], line_B[:, None], slot_B[:, None], features)
        hidden = self.body(None, cache, inputs_embeds=x_B1D, use_cache=True)
        logits: Tensor = self.head(hidden.last_hidden_state[:, -1])
        return logits.float()

    def _inputs(self, token: Tensor, line: Tensor, slot: Tensor, features: Tensor | None) -> Tensor:
        e_BTD = self.tokens(token) + self.lines(line) + self.slots(slot)
        if features is not None:
            e_BTD = torch.cat((e_BTD, features.to(e_BTD.dtype)), dim=-1)
        mixed: Tensor = self.mix(e_BTD)
        return mixed


def _channels_last(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last)


def decoder_config(settings: Mapping[str, Any], max_positions: int) -> GPT2Config:
    """Returns the config of the decoder.

    Raises:
        ValueError: A setting is none of `GPT2Config`.
    """
    check_keys("decoder", settings, GPT2Config().to_dict())
    plain: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    plain["activation_function"] = "gelu_pytorch_tanh"  # GPT-2's own `gelu_new`, as one kernel
    ours: dict[str, Any] = {"n_positions": max_positions, "vocab_size": 1, "use_cache": False}
    ours |= dict.fromkeys(("bos_token_id", "eos_token_id"))
    return GPT2Config(**{**plain, **settings, **ours})


def _timm_model(name: str, settings: Mapping[str, Any], in_chans: int) -> Any:
    """Builds an image model: with `out_index` its features, else one vector per image."""
    try:
        import timm
    except ImportError as error:
        raise ValueError("Art2Prog needs timm: pip install 'tenfold[art2prog]'") from error
    arguments = dict(settings)
    model = arguments.pop("model", "resnet18")
    out_index = arguments.pop("out_index", None)
    if out_index is None:
        arguments["num_classes"] = 0
    else:
        arguments |= {"features_only": True, "out_indices": (out_index,)}
    try:
        return timm.create_model(model, in_chans=in_chans, **arguments)
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
        raise ValueError(f"{name}: timm cannot build {model} with {settings}: {error}") from error
