"""BLIP-2 as a captioner, with either kind of decoder, against transformers itself."""

import pytest
import torch
from PIL import Image
from tenfold.modules.chat import ChatRequest, Message
from tenfold.modules.cvr_llm import Blip2Captioner
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

WIDTH = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
WIDTH |= {"num_attention_heads": 2, "initializer_range": 0.3}
WORDS = "question answer : ? what is the colour of circle red blue green there describe image . a"


def save(folder, kind):
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    ids = {word: k for k, word in enumerate([*special, *WORDS.split()])}
    words = Tokenizer(models.WordLevel(ids, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, **names, additional_special_tokens=["<image>"]
    )
    common = {"vocab_size": len(ids), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "t5":
        text = T5Config(
            d_model=32,
            d_kv=16,
            d_ff=48,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
            **common,
        )
    else:
        text = OPTConfig(
            hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
            word_embed_proj_dim=32, max_position_embeddings=128, init_std=0.3, **common,
        )  # fmt: skip
    torch.manual_seed(0)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**WIDTH, image_size=32, patch_size=8).to_dict(),
        qformer_config=Blip2QFormerConfig(**WIDTH, encoder_hidden_size=32, vocab_size=40).to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=4,
        image_token_index=ids["<image>"],
    )
    network = Blip2ForConditionalGeneration(config).eval()
    for parameter in network.parameters():  # small weights repeat one word
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    network.save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    Blip2Processor(images, tokenizer, num_query_tokens=4).save_pretrained(folder)
    return str(folder)


def requests(count=5):
    colours = ["red", "green", "blue"]
    texts = ["what is the colour of the circle ?", "describe the image .", "what is there ?"]
    return [
        ChatRequest(
            [Message("user", [Image.new("RGB", (40, 30), colours[k % 3]), texts[k % 3]])],
            max_new_tokens=6,
        )
        for k in range(count)
    ]


@pytest.mark.parametrize("kind", ["t5", "opt"])
def test_it_says_what_transformers_says(tmp_path, kind):
    folder = save(tmp_path / kind, kind)
    backend = Blip2Captioner(folder, prompt_format="question : {text} answer :", batch_size=2)
    found = backend.generate(requests())
    network = Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    processor = Blip2Processor.from_pretrained(folder)
    for request, response in zip(requests(), found, strict=True):
        image, text = request.turns[0].parts
        inputs = processor(images=image, text=f"question : {text} answer :", return_tensors="pt")
        with torch.inference_mode():
            ids = network.generate(**inputs, max_new_tokens=6, do_sample=False)
        if kind == "opt":
            ids = ids[:, inputs["input_ids"].shape[1] :]
        assert response.text == processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
        assert response.error == ""
    assert len({response.text for response in found}) > 1
    assert backend.identity["revision"] != "main"


def test_what_it_cannot_take_is_named(tmp_path):
    backend = Blip2Captioner(save(tmp_path / "t5", "t5"))
    with pytest.raises(ValueError, match="one turn with one image and one text"):
        backend.generate([ChatRequest("what is there ?")])
    with pytest.raises(ValueError, match="cannot load 'nowhere'"):
        Blip2Captioner("nowhere").generate(requests(1))
    with pytest.raises(ValueError, match="must be 1 or more"):
        Blip2Captioner("x", batch_size=0)
