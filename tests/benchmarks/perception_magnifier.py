"""Perception Magnifier against a literal version of the released loop, and against its rivals.

    python tests/benchmarks/perception_magnifier.py [--threads 2] [--num_tokens 8] [--repeats 3]

The literal version does what the authors' code does: one question at a time, eager attention with
all weights returned, images encoded in every pass that has them, a deep copy of the cache for each
round, one round more than is used. Both answer the same questions with the same tokens. The model
is a LLaVA with random weights, the 576 image tokens of LLaVA-1.5 and 35 tokens before them, as many
as its system prompt has. Times are medians of rounds in
which each takes its turn; tokens per second of every strategy are from the same rounds.
"""

import copy
import statistics
import time

import torch
from jsonargparse import auto_cli
from report import ratio
from tenfold.modules.perception_magnifier import (
    API,
    ICD,
    M3ID,
    PAI,
    SID,
    VCD,
    VDD,
    BeamSearch,
    Greedy,
    MapSettings,
    PerceptionMagnifier,
)
from tenfold.modules.perception_magnifier.perception_map import (
    aggregate_attention,
    box_smooth,
    enhance,
    two_means,
    upsample,
)
from tenfold.modules.perception_magnifier.warp import marginals, warp_images
from tenfold.modules.vision_language_model import VisionLanguageModel

WORDS = "what is in the image ? describe it a an red blue dog cat of yes no " + " ".join(
    f"w{i}" for i in range(200)
)
SIDE, PATCH, NUM_SYSTEM = 336, 14, 35
QUESTIONS = [
    "what is in the image ?",
    "describe the dog in it ?",
    "is it a red dog ?",
    "what is the blue cat ?",
]


def build() -> VisionLanguageModel:
    """A LLaVA whose sequences are as long as LLaVA-1.5's, and whose layers are narrow."""
    torch.manual_seed(0)
    text = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8}
    vision = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 8}
    module = VisionLanguageModel(
        config={
            "model_type": "llava",
            "vision_config": {
                "model_type": "clip_vision_model",
                **vision,
                **heads,
                "image_size": SIDE,
                "patch_size": PATCH,
            },
            "text_config": {**text, **heads, "initializer_range": 0.06},
        },
        image_size=SIDE,
        vocabulary=WORDS,
    )
    module.configure_model()
    module.network.train(False)
    return module


def encode(module: VisionLanguageModel, images, questions: list[str]) -> dict:
    """The prompts' `input_ids`, `attention_mask` and `pixel_values`."""
    inputs, _ = module.conversations.encode(images, [[question] for question in questions], None)
    words = module.conversations.processor.tokenizer(" ".join(f"w{i}" for i in range(NUM_SYSTEM)))
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if not mask.all():
        raise SystemExit("questions of one length, for the literal loop has no padding")
    system = torch.tensor(words["input_ids"][-NUM_SYSTEM:]).expand(len(ids), -1)
    inputs["input_ids"] = torch.cat([ids[:, :1], system, ids[:, 1:]], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


@torch.no_grad()
def literal(module: VisionLanguageModel, image, question: str, settings, num_tokens: int):
    """The released loop, token by token, for one question."""
    network = module.network
    inputs = encode(module, [[image]], [question])
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    is_image = ids[0] == network.config.image_token_id
    cache, answer = None, []
    first = max(1, round(0.375 * network.config.text_config.num_hidden_layers)) - 1
    divisor = network.config.text_config.num_hidden_layers - first

    def heat(output):
        rows = [layer[:, :, -1] for layer in output.attentions[first:]]
        return aggregate_attention(rows, divisor=divisor)[:, : len(is_image)][:, is_image]

    def look(keep, cache):
        length = ids.shape[1] + len(answer)
        mask = torch.ones(1, length, dtype=torch.int64)
        mask[0, : len(is_image)][is_image] = keep[0].long()
        if cache is None:
            return network(
                input_ids=ids,
                pixel_values=pixels,
                attention_mask=mask,
                position_ids=torch.arange(length)[None],
                output_attentions=True,
                use_cache=True,
            )
        return network(
            input_ids=torch.tensor([[answer[-1]]]),
            attention_mask=mask,
            position_ids=torch.tensor([[length - 1]]),
            past_key_values=copy.deepcopy(cache),
            output_attentions=True,
            use_cache=True,
        )

    everything = torch.ones(1, int(is_image.sum()), dtype=torch.bool)
    for _ in range(num_tokens):
        output = look(everything, cache)
        now = heat(output)
        keep, total, count = everything, torch.zeros_like(now), torch.zeros_like(now)
        for _ in range(settings.max_iterations):
            count, total = count + keep, total + now * keep
            keep = keep & ~two_means(now)
            again = look(keep, cache)
            now = heat(again) * keep
            if now.sum() <= settings.threshold:
                break
        cache = output.past_key_values
        side = SIDE // PATCH
        smooth = box_smooth(
            enhance((total / count).view(side, side), settings.alpha), settings.kernel_size
        )
        x, y = marginals(upsample(smooth, image.shape[1:])[None])
        warped = warp_images(image[None], x, y)
        shown = module.conversations.processor.image_processor(
            images=[warped[0]], return_tensors="pt", do_rescale=False
        )["pixel_values"]
        whole = torch.cat([ids, torch.tensor([answer], dtype=torch.int64)], dim=1)
        logits = network(input_ids=whole, pixel_values=shown, use_cache=False).logits
        answer.append(int(logits[0, -1].argmax()))
    return answer


def ours(module, images, questions, strategy, num_tokens):
    """The same by `generate`."""
    inputs = encode(module, images, questions)
    tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    decoded = module.network.generate(
        **tokens,
        custom_generate=strategy,
        images=images,
        processor=module.conversations.processor,
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=-1,
        return_dict_in_generate=True,
    )
    return decoded.sequences[:, -num_tokens:].tolist()


def main(threads: int = 2, num_tokens: int = 8, repeats: int = 3) -> None:
    """Prints seconds, ratios and tokens per second.

    Args:
        threads: Of torch.
        num_tokens: Of each answer.
        repeats: Rounds; each takes every way once.
    """
    torch.set_num_threads(threads)
    module = build()
    images = [[torch.rand(3, 420, 420)] for _ in QUESTIONS]
    settings = MapSettings()
    strategies = {
        "pm": PerceptionMagnifier(settings),
        "pm, first token": PerceptionMagnifier(settings, update="first_token"),
        "greedy": Greedy(),
        "beam": BeamSearch(),
        "vcd": VCD(),
        "vdd": VDD(),
        "icd": ICD(prefix="describe it "),
        "sid": SID(),
        "m3id": M3ID(),
        "pai": PAI(),
        "api": API(),
    }
    times: dict[str, list[float]] = {}

    def timed(name, run):
        began = time.perf_counter()
        result = run()
        times.setdefault(name, []).append(time.perf_counter() - began)
        return result

    for _ in range(repeats):
        module.network.get_decoder().set_attn_implementation("eager")
        expected = timed(
            "literal",
            lambda: [
                literal(module, image, question, settings, num_tokens)
                for (image,), question in zip(images, QUESTIONS, strict=True)
            ],
        )
        module.network.get_decoder().set_attn_implementation("sdpa")
        one_by_one = timed(
            "pm, one by one",
            lambda: [
                ours(module, [image], [question], strategies["pm"], num_tokens)[0]
                for image, question in zip(images, QUESTIONS, strict=True)
            ],
        )
        found = {
            name: timed(name, lambda s=strategy: ours(module, images, QUESTIONS, s, num_tokens))
            for name, strategy in strategies.items()
        }
        if not expected == one_by_one == found["pm"]:
            raise SystemExit(f"different answers: {expected}, {one_by_one}, {found['pm']}")
    median = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"{len(QUESTIONS)} questions, {num_tokens} tokens each, {threads} thread(s): same answers"
    )
    for name, seconds in median.items():
        speed = len(QUESTIONS) * num_tokens / seconds
        print(f"{name:16} {seconds:7.2f} s {speed:8.2f} tokens/s")
    for name in ("pm, one by one", "pm"):
        faster = median["literal"] / median[name]
        print(f"{name}: {faster:.2f} times as fast as the released loop (wanted: 1.5)")
        ratio(f"tokens/s, {name} / the released loop", faster, at_least=1.5)
    first = median["literal"] / median["pm, first token"]
    ratio("tokens/s, pm, first token / the released loop", first)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
