import json

import pytest
from chat_server import answer_to
from tenfold.modules.chat import CachedBackend, ChatRequest, ReplayBackend


def test_a_cache_is_replayed_without_its_model(server, tmp_path):
    requests = [ChatRequest("hello"), ChatRequest("which", choices=["A", "B"])]
    asked = CachedBackend(server.backend(), tmp_path / "cache").generate(requests)
    server.process.kill()
    replayed = ReplayBackend(tmp_path / "cache").generate(requests)
    assert [r.text for r in replayed] == [answer_to("hello"), "B"]
    assert [r.scores for r in replayed] == [r.scores for r in asked]
    assert all(response.cached for response in replayed)


def test_answers_from_elsewhere_are_found_by_name(tmp_path):
    path = tmp_path / "answers[1].jsonl"
    rows = [{"instance_id": f"{n}", "response": f"So it is.\nAnswer: {n}"} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "other.jsonl").write_text('{"instance_id": "9", "response": "no"}\n')
    fields = {"key_field": "instance_id", "text_field": "response"}
    backend = ReplayBackend(path, **fields)
    requests = [ChatRequest("anything", id=f"{n}") for n in (2, 0)]
    assert [r.text[-1] for r in backend.generate(requests)] == ["2", "0"]
    missing = ChatRequest("anything", id="9")
    with pytest.raises(ValueError, match=r"no answer to request 9 .on_miss: skip"):
        backend.generate([missing])
    (response,) = ReplayBackend(path, on_miss="skip", **fields).generate([missing])
    assert "no answer to request 9" in response.error
    with pytest.raises(ValueError, match="no field 'text' in a record with instance_id, response"):
        ReplayBackend(path, key_field="instance_id").generate(requests)
    with pytest.raises(ValueError, match="no answer to request 2"):  # a text is no score
        backend.generate([ChatRequest("anything", id="2", choices=["A", "B"])])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*nothing"):
        ReplayBackend(tmp_path / "nothing")
