"""Questions to tiny vision-language models by a way of decoding."""

QUESTIONS = ["what is the red digit ?", "what is in the image ?", "describe the image ."]
NO_EOS = {"eos_token_id": -1}  # all answers have the same length


def ask(module, strategy, images, questions=QUESTIONS, **settings):
    """Answers questions about images by `generate`, with all that strategies may want."""
    inputs, _ = module.conversations.encode(images, [[q] for q in questions], None)
    tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    defaults = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    return module.network.generate(
        **tokens,
        custom_generate=strategy,
        images=images,
        processor=module.conversations.processor,
        **{**defaults, **NO_EOS, **settings},
    )
