import asyncio
import base64
import copy
import gc
import io
import logging
import math
import os
import pickle
import threading
import time

import psutil
import pytest
from chat_server import answer_to
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tenfold.modules.chat import CachedBackend, ChatRequest, Message, OpenAIChatBackend
from tenfold.modules.chat.limits import RateLimit, backoff, retry_after
from tenfold.modules.chat.openai_wire import choice_scores, data_url, request_body

FAST = {"timeout": 1.0, "retry_seconds": 10.0}
RETRIED = [
    "busy",
    "no text",
    "broken",
    "truncated",
    "cut short",
    "slow",
    "trickling",
    "closed",
    "no choices",
]


def test_answers_come_in_the_order_of_the_requests(start):
    server = start("--seconds", "0.02", "--jitter", "1")
    texts = [f"question {number}" for number in range(200)]
    responses = server.backend().generate([ChatRequest(text) for text in texts])
    assert [response.text for response in responses] == [answer_to(text) for text in texts]
    first = responses[0]
    assert (first.model, first.finish_reason, first.error) == ("served", "stop", "")
    assert (first.prompt_tokens, first.completion_tokens) == (7, 3)
    assert first.seconds > 0


def test_a_server_need_not_tell_more_than_the_answer(server, key):
    (response,) = server.backend().generate([ChatRequest("tersely")])
    assert response.text == answer_to("tersely")
    assert (response.model, response.finish_reason, response.prompt_tokens) == ("", "", 0)
    assert server.backend().generate([]) == []


def test_requests_in_flight_are_bounded(start):
    server = start("--seconds", "0.02")
    server.backend(max_concurrency=7).generate([ChatRequest(f"{n}") for n in range(70)])
    assert server.statistics == {"most_in_flight": 7, "num_requests": 70}


def test_answers_are_kept_before_the_caller_takes_them(server, tmp_path):
    cache = CachedBackend(server.backend(), tmp_path / "cache")
    taken = cache.answer([ChatRequest(f"{number}") for number in range(20)])
    next(taken)  # and the caller is busy with it
    (path,) = (tmp_path / "cache").glob("*.jsonl")
    give_up = time.monotonic() + 20
    while path.read_bytes().count(b"\n") < 20:
        assert time.monotonic() < give_up, "answers wait for the caller"
        time.sleep(0.01)
    assert len([*taken]) == 19
    assert path.read_bytes().count(b"\n") == 20


def test_every_transient_fault_is_survived(server):
    texts = [f"{fault} once" for fault in RETRIED]
    responses = server.backend(**FAST).generate([ChatRequest(text) for text in texts])
    assert [response.text for response in responses] == [answer_to(text) for text in texts]
    received = [entry["text"] for entry in server.received]
    assert sorted(received) == sorted(texts * 2)  # each asked once more, and no more than that


@pytest.mark.parametrize("fault", RETRIED)
def test_a_fault_that_lasts_becomes_an_error(server, fault):
    backend = server.backend(timeout=0.3, retry_seconds=0.4)
    (response,) = backend.generate([ChatRequest(fault)])
    assert response.error
    assert response.text == ""
    assert len(response.error.splitlines()) == 1


def test_what_no_retry_can_help_is_asked_once(server, key):
    (response,) = server.backend(**FAST).generate([ChatRequest("refused")])
    assert response.error.startswith("status 400")
    assert len(server.received) == 1


def test_retry_after_holds_for_all_requests(server):
    backend = server.backend(max_concurrency=4, **FAST)
    began = time.monotonic()
    backend.generate([ChatRequest("busy once"), *[ChatRequest(f"{n}") for n in range(50)]])
    texts = [entry["text"] for entry in server.received]
    assert time.monotonic() - began >= 1.0
    # Those in flight beside the first were sent; all others waited.
    assert len(texts) == 52
    again = len(texts) - 1 - texts[::-1].index("busy once")
    assert again <= 12


def test_a_longer_wait_than_there_is_time_is_not_begun(server):
    began = time.monotonic()
    backend = server.backend(retry_seconds=0.9)
    busy, away, fine = backend.generate([ChatRequest(text) for text in ("busy", "away", "fine")])
    assert "429" in busy.error
    assert "429" in away.error
    assert fine.text == answer_to("fine")  # a wait of a day for one is not one for all
    assert time.monotonic() - began < 5


def test_too_many_errors_end_the_run(server):
    requests = [ChatRequest(f"refused {number}") for number in range(100)]
    with pytest.raises(ValueError, match=r"11 of 11 requests .* max_error_rate.* status 400"):
        server.backend(max_concurrency=1).generate(requests)
    assert len(server.received) == 11
    assert all(r.error for r in server.backend(max_error_rate=1.0).generate(requests[:30]))


def test_a_wrong_address_ends_the_run_at_once(server):
    backend = OpenAIChatBackend(server.url.replace("/v1", "/404"), "served")
    with pytest.raises(ValueError, match=r"status 404.*\$OPENAI_API_KEY"):
        backend.generate([ChatRequest("hello")])


def test_the_backend_is_usable_after_an_error(server):
    backend = server.backend(max_error_rate=0.0)
    with pytest.raises(ValueError, match="max_error_rate"):
        backend.generate([ChatRequest(f"refused {number}") for number in range(50)])
    assert backend.generate([ChatRequest("hello")])[0].text == answer_to("hello")


def test_choices_are_scored_by_log_probabilities(server):
    (response,) = server.backend().generate([ChatRequest("which", choices=["A", "B", "C"])])
    assert response.text == "B"  # " B" and "B" together win over "A"
    assert response.scores[0] == -1.0
    assert response.scores[1] == pytest.approx(math.log(math.exp(-0.9) + math.exp(-2.0)))
    assert response.scores[2] == -math.inf
    assert server.received[0]["body"]["max_tokens"] == 1
    (response,) = server.backend().generate([ChatRequest("without logprobs", choices=["A", "B"])])
    assert "sends no log-probabilities: let it answer in text" in response.error
    assert len(server.received) == 2  # another try would bring the same


def test_choices_must_differ_in_their_first_token():
    top = [("red", -0.1), (" red", -0.7), ("blue", -3.0), ("\n", -0.5)]
    assert choice_scores(top, ["green", "blue"]) == (-math.inf, -3.0)
    with pytest.raises(ValueError, match="begin with the same token: name them by letters"):
        choice_scores(top, ["red square", "red circle"])
    with pytest.raises(ValueError, match="none of the choices"):
        choice_scores(top, ["A", "B"])


@given(st.lists(st.floats(-20, 0), min_size=4, max_size=4))
def test_scores_sum_over_tokens_with_and_without_a_space(logs):
    pairs = list(zip(["A", " A", "B", " B"], logs, strict=True))
    expected = [math.log(math.exp(logs[0]) + math.exp(logs[1]))]
    expected.append(math.log(math.exp(logs[2]) + math.exp(logs[3])))
    assert choice_scores(pairs, ["A", "B"]) == pytest.approx(expected, rel=1e-12)


def test_the_request_has_what_was_asked_and_no_more():
    body = request_body(ChatRequest("hi"), "png", None, 20)
    message = {"role": "user", "content": "hi"}
    assert body == {"messages": [message], "temperature": 0.0, "max_tokens": 256}
    image = Image.new("RGB", (30, 20), "red")
    turns = [Message("system", "Look."), Message("user", ["This ", "is ", image, "what?"])]
    request = ChatRequest(turns, temperature=0.7, top_p=0.9, stop=["."], seed=3, max_new_tokens=5)
    body = request_body(request, "png", 15, 20)
    url = data_url(image, "png", 15)
    assert body == {
        "messages": [
            {"role": "system", "content": "Look."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "This is "},
                    {"type": "image_url", "image_url": {"url": url}},
                    {"type": "text", "text": "what?"},
                ],
            },
        ],
        "temperature": 0.7,
        "max_tokens": 5,
        "top_p": 0.9,
        "stop": ["."],
        "seed": 3,
    }


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_images_travel_as_rgb_and_not_larger_than_allowed(mode, image_format):
    image = Image.new("RGB", (64, 32), (200, 40, 90))
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    kind, _, data = data_url(image, image_format, 16).partition(";base64,")
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == f"data:image/{image_format}"
    assert (sent.mode, sent.size) == ("RGB", (16, 8))
    assert image.size == (64, 32)
    wanted = image.convert("RGB").getpixel((0, 0))
    assert max(abs(a - b) for a, b in zip(sent.getpixel((8, 4)), wanted, strict=True)) <= 3


def test_extra_settings_reach_the_server(server):
    backend = server.backend(
        extra_body={"top_k": 5}, length_field="max_completion_tokens", api_key_env="NO_SUCH_KEY"
    )
    backend.generate([ChatRequest("hello", max_new_tokens=9)])
    body = server.received[0]["body"]
    assert body["top_k"] == 5
    assert body["max_completion_tokens"] == 9
    assert "max_tokens" not in body


def test_the_key_reaches_the_server_and_nothing_else(server, key, tmp_path, caplog, capfd):
    for name in (None, "openai", "httpx2", "httpcore2", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    folder = tmp_path / "cache"
    backend = CachedBackend(server.backend(**FAST), folder)
    texts = ["hello", "refused", "broken once", "say the key"]
    responses = backend.generate([ChatRequest(text) for text in texts])
    assert server.received[0]["headers"]["authorization"] == f"Bearer {key}"
    assert "bad request by Bearer ***" in responses[1].error
    assert responses[3].text == "Bearer ***"
    printed = capfd.readouterr()
    shown = [caplog.text, printed.out, printed.err, str(responses), str(backend.identity)]
    shown += [str(vars(backend.backend)), str(pickle.dumps(backend))]
    shown += [path.read_bytes().decode("latin-1") for path in folder.iterdir()]
    assert "POST" in caplog.text
    assert len(shown) == 8
    assert not any(key in text for text in shown)


@pytest.mark.parametrize(
    "address", ["http://me:secret@host/v1", "https://host/v1?key=secret", "host:8000/v1"]
)
def test_secrets_in_addresses_are_refused_and_not_repeated(address):
    with pytest.raises(ValueError, match="base_url must be") as caught:
        OpenAIChatBackend(address, "model")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["max_concurrency", "timeout", "requests_per_minute"])
def test_numbers_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be more than 0, got 0"):
        OpenAIChatBackend("http://host/v1", "model", **{name: 0})


def test_copies_have_the_arguments_and_work(server):
    backend = server.backend(**FAST)
    backend.generate([ChatRequest("hello")])
    for again in (copy.deepcopy(backend), pickle.loads(pickle.dumps(backend))):
        assert vars(again) == {k: v for k, v in vars(backend).items() if k != "_session"}
        assert again.generate([ChatRequest("hello")])[0].text == answer_to("hello")


def test_a_forked_process_makes_its_own_connections(server):
    backend = server.backend(**FAST)
    backend.generate([ChatRequest("hello")])
    process = os.fork()
    if not process:
        right = backend.generate([ChatRequest("child")])[0].text == answer_to("child")
        os._exit(0 if right else 1)
    assert os.waitpid(process, 0)[1] == 0
    assert backend.generate([ChatRequest("parent")])[0].text == answer_to("parent")


def test_a_backend_that_is_no_longer_used_leaves_nothing(server, caplog):
    backends = [server.backend() for _ in range(3)]
    before = set(threading.enumerate())
    for backend in backends:
        backend.generate([ChatRequest("hello")])
    started = set(threading.enumerate()) - before
    assert len(started) >= 3
    del backends, backend
    gc.collect()
    for thread in started:
        thread.join(5)
        assert not thread.is_alive()
    assert not caplog.records


def test_rates_are_kept(server):
    backend = server.backend(requests_per_minute=60 * 40)
    began = time.monotonic()
    backend.generate([ChatRequest(f"{number}") for number in range(100)])
    # 40 per second, of which the first second's may come at once.
    assert 1.4 < time.monotonic() - began < 4


def test_each_process_takes_its_share_of_the_rate(server, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    backend = server.backend(requests_per_minute=4 * 60 * 20)
    began = time.monotonic()
    backend.generate([ChatRequest(f"{number}") for number in range(60)])
    assert 1.9 < time.monotonic() - began < 5


def test_tokens_that_were_not_used_are_given_back():
    async def take(given_back: float) -> float:
        limit = RateLimit(6000)
        began = time.monotonic()
        for _ in range(3):
            await limit.take(100)
            limit.give_back(given_back)
        return time.monotonic() - began

    assert asyncio.run(take(0)) >= 0.9
    assert asyncio.run(take(99)) < 0.5
    assert asyncio.run(RateLimit(None).take(1e9)) is None


def test_what_servers_say_about_waiting_is_understood():
    assert retry_after({"retry-after": "3"}) == 3.0
    assert retry_after({"retry-after": "0.25"}) == 0.25
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert 0 <= retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    for nonsense in ({}, {"retry-after": "soon"}, {"retry-after": "-5"}, {"retry-after": "nan"}):
        assert retry_after(nonsense) is None


def test_backoff_doubles_up_to_a_minute():
    for attempt, longest in [(0, 0.5), (1, 1.0), (4, 8.0), (7, 60.0), (500, 60.0)]:
        waits = [backoff(attempt) for _ in range(200)]
        assert longest / 2 <= min(waits) < max(waits) <= longest


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_requests(start, tmp_path):
    backend = CachedBackend(start().backend(), tmp_path / "cache")
    process, begin = psutil.Process(), 0
    for part in range(101):
        requests = [ChatRequest(f"question {part} {number}") for number in range(1000)]
        assert not any(response.error for response in backend.generate(requests))
        if part == 0:  # what is made once: client, connections, index
            begin = process.memory_info().rss
    growth = (process.memory_info().rss - begin) / 2**20
    print(f"\nresident memory grew by {growth:.1f} MB over 100,000 requests")
    assert growth < 50


@pytest.mark.slow
def test_a_server_is_kept_busy(start, tmp_path):
    backend = CachedBackend(start("--seconds", "0.5").backend(), tmp_path / "cache")
    backend.generate([ChatRequest(f"warm up {number}") for number in range(64)])
    began = time.monotonic()
    responses = backend.generate([ChatRequest(f"{number}") for number in range(6400)])
    share = 6400 / (time.monotonic() - began) / (64 / 0.5)
    assert not any(response.error for response in responses)
    print(f"\n{share:.1%} of what the server can do")
