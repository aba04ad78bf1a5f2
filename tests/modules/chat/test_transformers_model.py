import copy
import math
import pickle
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from scipy.stats import chisquare
from tenfold.modules.chat import ChatRequest, Message, TransformersChatBackend
from tenfold.modules.chat.transformers_model import RowSampler
from tiny_chat import save_text_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

QUESTIONS = ["Answer:", "is this a red square ?", "A B C D", "square " * 30, "?"]


def square(color: str) -> Image.Image:
    return Image.new("RGB", (40, 40), color)


def image_requests(**settings) -> list[ChatRequest]:
    red, blue = square("red"), square("blue")
    contents = [
        [red, "what ?"],
        [blue, "what ?"],
        [red, "and", blue, " ?"],
        [blue, "and", red, " ?"],
    ]
    return [ChatRequest([Message("user", content)], **settings) for content in contents]


def prompt_ids(tokenizer, request: ChatRequest) -> list[int]:
    """The template of `tiny_chat`, written out."""
    text = "".join(f"[{turn.role}]{turn.content}</s>" for turn in request.turns)
    return tokenizer.encode(f"<s>{text}[assistant]", add_special_tokens=False)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def any_text_model(request, tmp_path_factory) -> str:
    return save_text_model(tmp_path_factory.mktemp("models") / request.param, request.param)


def test_greedy_answers_are_those_of_a_loop_over_the_network(any_text_model):
    backend = TransformersChatBackend(any_text_model, batch_size=4)
    requests = [ChatRequest(text, max_new_tokens=12) for text in QUESTIONS]
    requests[1] = ChatRequest([Message("system", "A"), Message("user", "B")], max_new_tokens=12)
    responses = backend.generate(requests)
    network = AutoModelForCausalLM.from_pretrained(any_text_model).double()
    tokenizer = AutoProcessor.from_pretrained(any_text_model)
    for request, response in zip(requests, responses, strict=True):
        prompt = prompt_ids(tokenizer, request)
        written: list[int] = []
        while len(written) < 12 and (not written or written[-1] != 2):
            logits = network(torch.tensor([prompt + written])).logits
            written.append(int(logits[0, -1].argmax()))
        ended = written[-1] == 2
        assert response.text == tokenizer.decode(written, skip_special_tokens=True)
        assert response.finish_reason == ("stop" if ended else "length")
        assert response.prompt_tokens == len(prompt)
        assert response.completion_tokens == len(written) - ended


def test_scores_are_those_of_the_network_in_double_precision(any_text_model):
    choices = ["A", "B", "red square", "red", "is this a red square ?", "C"]
    backend = TransformersChatBackend(any_text_model, batch_size=3)
    requests = [ChatRequest(text, choices=choices) for text in QUESTIONS]
    responses = backend.generate(requests)
    network = AutoModelForCausalLM.from_pretrained(any_text_model).double()
    tokenizer = AutoProcessor.from_pretrained(any_text_model)
    for request, response in zip(requests, responses, strict=True):
        prompt = prompt_ids(tokenizer, request)
        expected = []
        for choice in choices:
            total = 0.0
            for text in (choice, f" {choice}"):
                ids = tokenizer.encode(text, add_special_tokens=False)
                logits = network(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
                logs = logits.log_softmax(-1)[range(len(ids)), ids]
                total += math.exp(logs.sum().item())
            expected.append(math.log(total))
        assert response.scores == pytest.approx(expected, abs=1e-4)
        assert response.text == choices[int(np.argmax(expected))]
        assert (response.finish_reason, response.completion_tokens) == ("choice", 0)


def test_images_are_seen_in_their_order(image_model):
    backend = TransformersChatBackend(image_model, batch_size=2)
    responses = backend.generate(image_requests(choices=["A", "B", "red square"]))
    network = AutoModelForImageTextToText.from_pretrained(image_model)
    processor = AutoProcessor.from_pretrained(image_model)
    for request, response in zip(image_requests(), responses, strict=True):
        (turn,) = request.turns
        text = "".join(p if isinstance(p, str) else "<image>" for p in turn.parts)
        inputs = processor(
            text=[f"<s>[user]{text}</s>[assistant]"],
            images=[turn.images],
            add_special_tokens=False,
            return_tensors="pt",
        )
        logs = network(**inputs).logits[0, -1].double().log_softmax(-1)
        a, spaced_a = (processor.tokenizer.encode(x, add_special_tokens=False) for x in ("A", " A"))
        expected = np.logaddexp(logs[a[0]].item(), logs[spaced_a[0]].item())
        assert len(a) == len(spaced_a) == 1
        assert response.scores[0] == pytest.approx(expected, abs=1e-4)
    assert len({response.scores for response in responses}) == 4


def test_answers_do_not_depend_on_the_batch(image_model):
    requests = image_requests(max_new_tokens=10)
    requests += image_requests(max_new_tokens=10, temperature=1.0)
    requests += image_requests(max_new_tokens=10, temperature=1.0, top_p=0.6, seed=5)
    requests += image_requests(choices=["A", "B"])
    requests += [ChatRequest(text, max_new_tokens=6) for text in QUESTIONS]  # without images
    together = TransformersChatBackend(image_model, batch_size=8).generate(requests)
    alone = TransformersChatBackend(image_model, batch_size=1)
    torch.rand(3)  # torch's generators have no part in it
    for request, response in zip(requests, together, strict=True):
        (other,) = alone.generate([request])
        assert (other.text, other.finish_reason) == (response.text, response.finish_reason)
        assert other.scores == pytest.approx(response.scores, abs=1e-4)


def test_a_repeated_draw_is_the_same_and_another_seed_or_attempt_is_not(text_model):
    backend = TransformersChatBackend(text_model)
    settings = {"max_new_tokens": 16, "temperature": 1.5}
    variants = [{}, {}, {"seed": 1}, {"attempt": 1}]
    answers = [ChatRequest("Answer:", **settings, **variant) for variant in variants]
    first, again, seed, attempt = (response.text for response in backend.generate(answers))
    assert first == again
    assert len({first, seed, attempt}) == 3


def test_sampling_follows_the_distribution():
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0, 0.5]]).log_softmax(-1)
    num_draws = 6000
    for temperature, top_p in [(1.0, 1.0), (0.5, 1.0), (1.3, 0.8)]:
        request = ChatRequest("?", temperature=temperature, top_p=top_p)
        sampler = RowSampler([request])
        draws = Counter(int(sampler(torch.zeros(1, 1), logits).argmax()) for _ in range(num_draws))
        expected = (logits[0].double() / temperature).softmax(-1).numpy()
        order = np.argsort(-expected)
        inside = np.cumsum(expected[order]) - expected[order] < top_p
        kept = np.sort(order[inside])
        assert set(draws) == set(kept.tolist())
        share = expected[kept] / expected[kept].sum()
        counts = [draws[int(token)] for token in kept]
        assert chisquare(counts, share * num_draws).pvalue > 1e-3
    untouched = RowSampler([ChatRequest("?")])(torch.zeros(1, 1), logits)
    assert torch.equal(untouched, logits)


def test_an_answer_ends_before_its_stop_text(text_model):
    backend = TransformersChatBackend(text_model)
    (whole,) = backend.generate([ChatRequest("Answer:", max_new_tokens=30)])
    stop = next(sign for sign in whole.text if sign.isascii() and sign.isprintable())
    (cut,) = backend.generate([ChatRequest("Answer:", max_new_tokens=30, stop=[stop, "never"])])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.completion_tokens < whole.completion_tokens


def test_the_settings_of_a_model_do_not_change_what_a_request_says(text_model, tmp_path):
    network = AutoModelForCausalLM.from_pretrained(text_model)
    network.generation_config.update(repetition_penalty=5.0, do_sample=True, temperature=2.0)
    network.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(text_model).save_pretrained(tmp_path)
    requests = [ChatRequest(text, max_new_tokens=20) for text in QUESTIONS]
    plain = TransformersChatBackend(text_model).generate(requests)
    changed = TransformersChatBackend(str(tmp_path)).generate(requests)
    assert [a.text for a in plain] == [b.text for b in changed]


def test_what_is_too_long_gets_an_error_and_the_others_an_answer(text_model):
    backend = TransformersChatBackend(text_model)
    for settings in ({"max_new_tokens": 4}, {"choices": ["A", "B"]}):
        texts = ["Answer:", "square " * 600, "?"]
        good, bad, also_good = backend.generate([ChatRequest(text, **settings) for text in texts])
        assert good.text
        assert also_good.text
        assert not good.error + also_good.error
        assert "has room for 512" in bad.error


def test_the_identity_is_the_content(text_model, image_model, tmp_path):
    again = save_text_model(tmp_path / "elsewhere" / "text_model")
    identity = TransformersChatBackend(text_model).identity
    revision = TransformersChatBackend(again).identity["revision"]
    assert revision == identity["revision"]
    assert TransformersChatBackend(image_model).identity["revision"] != revision
    assert TransformersChatBackend(text_model, dtype="float32").identity != identity
    (tmp_path / "elsewhere" / "text_model" / "chat_template.jinja").write_text("{{ messages }}")
    assert TransformersChatBackend(again).identity["revision"] != revision


def test_copies_and_checkpoints_have_no_weights(text_model):
    backend = TransformersChatBackend(text_model)
    (response,) = backend.generate([ChatRequest("Answer:", max_new_tokens=8)])
    assert len(pickle.dumps(backend)) < 2000
    again = copy.deepcopy(backend)
    assert not [name for name in vars(again) if name.startswith("_")]
    assert again.generate([ChatRequest("Answer:", max_new_tokens=8)])[0].text == response.text
    network = weakref.ref(again._loaded.network)
    del again
    assert network() is None
    module = LightningModule()
    module.backend = backend
    assert not module.state_dict()


def test_the_precision_of_a_trainer_is_not_that_of_the_backend(text_model, tmp_path):
    backend = TransformersChatBackend(text_model)
    requests = [ChatRequest(text, choices=["A", "B"]) for text in QUESTIONS]
    expected = [response.scores for response in backend.generate(requests)]

    class Asking(LightningModule):
        def predict_step(self, batch, batch_idx):
            assert torch.is_autocast_enabled("cpu")
            return [response.scores for response in backend.generate(requests)]

    quiet = {"logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    trainer = Trainer(accelerator="cpu", precision="bf16-mixed", **quiet)
    (scores,) = trainer.predict(Asking(), DataLoader([0]))
    assert scores == expected


def test_what_is_no_chat_model_is_named(text_model, image_model, tmp_path):
    with pytest.raises(ValueError, match="cannot load '/no/such/model'"):
        TransformersChatBackend("/no/such/model").generate([ChatRequest("?")])
    with pytest.raises(ValueError, match=r"TransformersChatBackend .* takes no images"):
        TransformersChatBackend(text_model).generate(image_requests())
    AutoModelForCausalLM.from_pretrained(text_model).save_pretrained(tmp_path)
    words = AutoProcessor.from_pretrained(text_model)
    words.chat_template = None
    words.save_pretrained(tmp_path)
    without = TransformersChatBackend(str(tmp_path))
    with pytest.raises(ValueError, match="has no chat template: give chat_template"):
        without.generate([ChatRequest("?")])
    given = TransformersChatBackend(str(tmp_path), chat_template="{{ messages[0]['content'] }}")
    (response,) = given.generate([ChatRequest("Answer:", max_new_tokens=3)])
    assert response.prompt_tokens == len(words.encode("Answer:"))
    refusing = TransformersChatBackend(
        text_model, chat_template="{{ raise_exception('no system, please') }}"
    )
    with pytest.raises(ValueError, match="refuses the messages: no system, please"):
        refusing.generate([ChatRequest("?")])
