import json
import math
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tenfold.modules.chat import CachedBackend, ChatBackend, ChatRequest, ChatResponse, Message
from tenfold.modules.chat.backend import Keep
from tenfold.modules.record_store import RecordIndex


class Counting(ChatBackend):
    """Answers by a rule, backwards, and remembers what it was asked."""

    supports_images = True
    supports_scoring = True

    def __init__(self, name: str = "one"):
        self.name = name
        self.asked: list[str] = []

    @property
    def identity(self) -> dict[str, Any]:
        return {"backend": "counting", "name": self.name}

    def answer(
        self, requests: Sequence[ChatRequest], keep: Keep | None = None
    ) -> Iterator[tuple[int, ChatResponse]]:
        for place, request in reversed(list(enumerate(requests))):
            text = str(request.turns[-1].parts[-1])
            self.asked.append(text)
            if text == "interrupt":
                raise KeyboardInterrupt
            if text == "fail":
                yield place, ChatResponse("", "error", error="no answer")
            else:
                scores = (-0.5, -math.inf) if request.choices else ()
                yield place, ChatResponse(f"re: {text}", "stop", scores, 3, 4, 0.5, self.name)


@pytest.fixture
def cached(tmp_path) -> CachedBackend:
    return CachedBackend(Counting(), tmp_path)


def texts(responses: list[ChatResponse]) -> list[str]:
    return [response.text for response in responses]


def asked(texts: Sequence[str], backend: CachedBackend) -> list[str]:
    """What reaches the backend when `texts` are asked."""
    before = len(backend.backend.asked)
    answers = backend.generate([ChatRequest(text) for text in texts])
    assert [a.text for a in answers] == [f"re: {text}" for text in texts]
    return sorted(backend.backend.asked[before:])


def test_nothing_is_asked_twice(cached, tmp_path):
    assert asked(["a", "b", "a"], cached) == ["a", "b"]
    assert asked(["b", "c", "a"], cached) == ["c"]
    again = CachedBackend(Counting(), tmp_path)
    assert asked(["c", "b", "a"], again) == []


def test_a_cached_answer_is_the_answer(cached, tmp_path):
    requests = [ChatRequest("a", choices=["A", "B"]), ChatRequest('ü\n"\u2028')]
    first = cached.generate(requests)
    second = CachedBackend(Counting(), tmp_path).generate(requests)
    for fresh, stored in zip(first, second, strict=True):
        assert stored.cached
        assert not fresh.cached
        for name in ("text", "finish_reason", "scores", "prompt_tokens", "completion_tokens"):
            assert getattr(stored, name) == getattr(fresh, name)
        assert (stored.seconds, stored.model) == (0.5, "one")


def test_another_model_is_another_answer(cached, tmp_path):
    cached.generate([ChatRequest("a")])
    other = CachedBackend(Counting("two"), tmp_path)
    assert asked(["a"], other) == ["a"]


def test_errors_are_not_kept(cached):
    for _ in range(2):
        assert cached.generate([ChatRequest("fail")])[0].error == "no answer"
    assert cached.backend.asked == ["fail", "fail"]


def test_answers_before_an_interruption_are_kept(cached, tmp_path):
    requests = [ChatRequest(text) for text in ("c", "interrupt", "b", "a")]
    with pytest.raises(KeyboardInterrupt):
        cached.generate(requests)
    assert asked(["a", "b", "c"], CachedBackend(Counting(), tmp_path)) == ["c"]


def image(value: int, mode: str = "RGB", size: tuple[int, int] = (2, 2)) -> Image.Image:
    return Image.new("L", size, value).convert(mode)


def test_what_may_change_an_answer_changes_the_key():
    turn = Message("user", ["a", image(1)])
    base = ChatRequest([turn], stop=["x"])
    variants = [
        ChatRequest([turn]),
        ChatRequest([Message("system", "s"), turn], stop=["x"]),
        ChatRequest([Message("assistant", turn.content)], stop=["x"]),
        ChatRequest([Message("user", ["a", image(2)])], stop=["x"]),
        ChatRequest([Message("user", ["a", image(1, size=(4, 1))])], stop=["x"]),
        ChatRequest([Message("user", [image(1), "a"])], stop=["x"]),
        ChatRequest([turn], stop=["x"], max_new_tokens=1),
        ChatRequest([turn], stop=["x"], temperature=0.1),
        ChatRequest([turn], stop=["x"], top_p=0.5),
        ChatRequest([turn], stop=["x"], seed=0),
        ChatRequest([turn], stop=["x"], choices=["A", "B"]),
        ChatRequest([turn], stop=["x"], choices=["B", "A"]),
        ChatRequest([turn], stop=["x"], attempt=1),
    ]
    digests = [request.digest for request in [base, *variants]]
    assert len(set(digests)) == len(digests)
    same = [
        ChatRequest((Message("user", ("a", image(1))),), stop=("x",), id="named"),
        ChatRequest([Message("user", ["a", image(1, "L")])], stop=["x"]),
        ChatRequest([Message("user", ["a", image(1, "P")])], stop=["x"]),
    ]
    assert {request.digest for request in same} == {base.digest}
    assert ChatRequest("ab").digest == ChatRequest([Message("user", ["a", "b"])]).digest


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"messages": []}, "give at least one"),
        ({"messages": ""}, "give at least one"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more, got 0"),
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"choices": ["A"]}, "two or more different texts"),
        ({"choices": ["A", "A"]}, "two or more different texts"),
        ({"choices": ["A", " B"]}, "without spaces around them"),
        ({"choices": ["A", "B", "A"]}, "two or more different texts"),
        ({"choices": ["A", ""]}, "two or more different texts"),
    ],
)
def test_a_wrong_request_is_refused(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        ChatRequest(**{"messages": "?"} | arguments)


def leave(backend: CachedBackend) -> None:
    """Lets go of the files, as the end of a process does."""
    os.close(backend._store._file.fileno())
    del backend._store


def shard(folder: Path, number: int = 0) -> Path:
    return sorted(folder.glob("*.jsonl"))[number]


def test_a_torn_line_is_skipped_and_the_file_goes_on(cached, tmp_path, caplog):
    cached.generate([ChatRequest(text) for text in "abc"])
    leave(cached)
    with shard(tmp_path).open("ab") as file:
        file.write(shard(tmp_path).read_bytes()[:50])
    after = CachedBackend(Counting(), tmp_path)
    assert asked("abcd", after) == ["d"]
    assert "skipped 1 damaged lines" in caplog.text
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    leave(after)
    assert asked("abcd", CachedBackend(Counting(), tmp_path)) == []


def test_damaged_and_lost_lines_are_asked_again(cached, tmp_path, caplog):
    cached.generate([ChatRequest(text) for text in "abcdef"])  # answered backwards
    leave(cached)
    lines = shard(tmp_path).read_bytes().splitlines(keepends=True)
    zeros = b"\0" * (len(lines[0]) - 1) + b"\n"  # what a crash of the machine may leave
    shard(tmp_path).write_bytes(
        b"".join([zeros, *lines[1:3], b"[1]\n", b'{"text": "x"}\n', lines[3]])
    )
    after = CachedBackend(Counting(), tmp_path)
    assert asked("abcdef", after) == ["a", "b", "f"]
    assert "skipped 3 damaged lines, the first at byte 0" in caplog.text
    leave(after)
    assert asked("abcdef", CachedBackend(Counting(), tmp_path)) == []


def test_a_cache_is_lines_of_json(cached, tmp_path):
    cached.generate([ChatRequest("a")])
    (line,) = shard(tmp_path).read_text().splitlines()
    record = json.loads(line)
    assert record["text"] == "re: a"
    assert record["request"] == ChatRequest("a").digest
    assert [path.name for path in tmp_path.iterdir()] == ["rank-00000.jsonl"]


def test_a_full_disk_leaves_no_torn_line(cached, tmp_path, monkeypatch):
    cached.generate([ChatRequest("a")])
    store = cached._store
    size = shard(tmp_path).stat().st_size

    class Full:
        name = store._file.name

        def write(self, line: bytes) -> int:
            return store_file.write(line[:20])

        def __getattr__(self, name: str) -> Any:
            return getattr(store_file, name)

    store_file, store._file = store._file, Full()
    with pytest.raises(OSError, match="the disk is full"):
        cached.generate([ChatRequest("b")])
    assert shard(tmp_path).stat().st_size == size
    store._file = store_file
    assert asked("abc", cached) == ["b", "c"]


def test_processes_at_a_time_write_files_of_their_own(tmp_path):
    first, second = (CachedBackend(Counting(), tmp_path) for _ in range(2))
    assert asked("ab", first) == ["a", "b"]
    assert asked("bc", second) == ["c"]
    process = os.fork()
    if not process:
        os._exit(0 if asked("abcd", second) == ["d"] else 1)
    assert os.waitpid(process, 0)[1] == 0
    names = [path.name for path in sorted(tmp_path.glob("*.jsonl"))]
    assert names == ["rank-00000-1.jsonl", "rank-00000-2.jsonl", "rank-00000.jsonl"]
    first._store._refreshed = -math.inf  # as if some time had passed
    assert asked("abcd", first) == []


def rank_asks(folder: Path, rank: int, world_size: int, asked: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
    backend = CachedBackend(Counting(), folder)
    numbers = range(rank, 60, world_size)
    answers = backend.generate([ChatRequest(str(number)) for number in numbers])
    assert texts(answers) == [f"re: {number}" for number in numbers]
    asked.put(backend.backend.asked)


def test_more_ranks_read_what_fewer_wrote(tmp_path):
    context = multiprocessing.get_context("fork")
    for world_size, expected in ((2, 60), (3, 0), (1, 0)):
        asked = context.SimpleQueue()
        arguments = [(tmp_path, rank, world_size, asked) for rank in range(world_size)]
        ranks = [context.Process(target=rank_asks, args=each) for each in arguments]
        for process in ranks:
            process.start()
        questions = [text for _ in ranks for text in asked.get()]
        for process in ranks:
            process.join()
            assert process.exitcode == 0
        assert sorted(questions, key=int) == [str(number) for number in range(expected)]
    assert [p.stem for p in sorted(tmp_path.glob("*.jsonl"))] == [
        f"rank-{rank:05d}" for rank in range(3)
    ]


lines = st.one_of(
    st.tuples(st.text(max_size=3), st.text(max_size=5)),  # a record
    st.binary(max_size=12).filter(lambda part: b"\n" not in part),  # rubbish
)


@settings(max_examples=60, deadline=None)
@given(st.lists(lines, max_size=12), st.data())
def test_an_index_finds_what_reading_everything_finds(written, data):
    """Whatever the pieces in which a file grows, and whenever the index looks."""
    encoded = [
        line if isinstance(line, bytes) else json.dumps({"key": line[0], "n": line[1]}).encode()
        for line in written
    ]
    content = b"".join(line + b"\n" for line in encoded)
    cuts = data.draw(st.lists(st.integers(0, len(content)), max_size=4).map(sorted))
    expected: dict[str, dict] = {}
    for line in encoded:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "key" in record:
            expected.setdefault(str(record["key"]), record)
    with tempfile.TemporaryDirectory() as folder:
        index = RecordIndex(Path(folder), "key")
        for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
            with (Path(folder) / "a.jsonl").open("ab") as file:
                file.write(content[begin:end])
            index.refresh()
        assert {key: index.find(key) for key in expected} == expected
        assert index.find("no such key") is None
