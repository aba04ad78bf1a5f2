"""Kills a run of chat requests at random moments, goes on with it, and compares what it gets.

    python tests/faults/chat_kills.py --kills 20

Requests go through a cache to a server in a process of its own, 64 at a time. Each kill is a
SIGKILL a random time after a random number of requests; then half a line is added to the file, as a
machine that goes down may leave it, and the next process goes on. The server's log tells what was
sent: nothing whose answer was read may be in it again, and in the end the answers must be those of
a run without kills. What the server had answered and the process had not yet read when it was
killed is lost with its connections; it is counted. Then two ranks and after them three ask through
one cache. Processes are forked from one that has imported and used everything.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import openai

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
sys.path.insert(0, str(HELPERS))

from chat_server import answer_to  # noqa: E402
from tenfold.modules.chat import CachedBackend, ChatRequest, OpenAIChatBackend  # noqa: E402


class Trial:
    """Requests, the server that answers them, and the log of what it was sent."""

    def __init__(self, folder: Path, url: str, log: Path, num_requests: int):
        self.folder, self.url, self.log = folder, url, log
        self.questions = [f"question {number}" for number in range(num_requests)]

    def start(self, cache: Path, rank: int = 0, world_size: int = 1) -> int:
        """Forks a rank that asks its share of all questions; returns its process number."""
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
            backend = CachedBackend(OpenAIChatBackend(self.url, "served"), cache)
            asked = self.questions[rank::world_size]
            answers = backend.generate([ChatRequest(question) for question in asked])
            pairs = [(text, answer.text) for text, answer in zip(asked, answers, strict=True)]
            cache.with_suffix(f".{rank}").write_text(json.dumps(pairs))
            code = 0
        finally:
            os._exit(code)

    def finish(self, processes: list[int], cache: Path) -> dict[str, str]:
        """Waits for all ranks; returns their answers by question."""
        for process in processes:
            status = os.waitpid(process, 0)[1]
            if status != 0:
                raise SystemExit(f"a rank ended with status {status}")
        parts = [cache.with_suffix(f".{rank}") for rank in range(len(processes))]
        return dict(pair for part in parts for pair in json.loads(part.read_text()))

    def sent(self, since: int = 0) -> list[str]:
        """The questions that reached the server after the first `since`."""
        return [json.loads(line)["text"] for line in self.log.read_text().splitlines()[since:]]

    def answered(self, since: int = 0) -> list[str]:
        """The questions whose answers the server handed to the network after the first `since`."""
        lines = self.log.with_suffix(".answered").read_text().splitlines()[since:]
        return [json.loads(line) for line in lines]

    def wait_until_sent(self, number: int) -> None:
        while self.log.read_bytes().count(b"\n") < number:
            time.sleep(0.001)


def stored(cache: Path) -> set[str]:
    """The questions whose answers are on disk, read without the package."""
    lines = b"".join(path.read_bytes() for path in cache.glob("*.jsonl")).split(b"\n")
    texts = [json.loads(line)["text"] for line in lines if line.endswith(b"}")]
    return {text.partition(" to ")[2] for text in texts}


def kill_and_compare(trial: Trial, kills: int, drawn: random.Random) -> str:
    """Runs it whole, killed, and by ranks; returns what to say of it."""
    whole = trial.finish([trial.start(trial.folder / "whole")], trial.folder / "whole")
    expected = set(trial.questions)
    assert whole == {question: answer_to(question) for question in expected}
    assert sorted(trial.sent()) == sorted(expected)

    cache, stages, unkept, unread = trial.folder / "killed", [], 0, 0
    cache.mkdir()
    for _ in range(kills):
        answered, before = stored(cache), len(trial.sent())
        num_handed = len(trial.answered())
        process = trial.start(cache)
        most = min(len(expected) - len(answered), 2 * len(expected) // kills)
        trial.wait_until_sent(before + drawn.randint(0, most))
        time.sleep(drawn.uniform(0, 0.1))
        handed = set(trial.answered(num_handed))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        time.sleep(0.2)  # until the server has written down what it was sent
        sent, kept = set(trial.sent(before)), stored(cache)
        assert not answered & sent, f"sent again: {answered & sent}"
        assert len(sent - kept) <= 128, "more was lost than was under way"
        unkept += len(sent - kept)
        unread += len(handed - kept)
        stages.append(len(kept))
        for path in cache.glob("*.jsonl"):
            with path.open("ab") as file:
                file.write(b'{"key": "torn')
    assert len(set(stages)) > kills / 2, f"kills hit nothing: {stages}"
    answered, before = stored(cache), len(trial.sent())
    assert trial.finish([trial.start(cache)], cache) == whole, "the answers differ"
    assert sorted(trial.sent(before)) == sorted(expected - answered)

    for world_size, number in ((2, len(expected)), (3, 0), (1, 0)):
        before, cache = len(trial.sent()), trial.folder / "ranks"
        ranks = [trial.start(cache, rank, world_size) for rank in range(world_size)]
        assert trial.finish(ranks, cache) == whole, "the answers of the ranks differ"
        assert len(trial.sent(before)) == number
    return (
        f"{kills} kills, with {stages} of {len(expected)} answered: none of these sent again, "
        f"{unkept} were under way, of them {unread} on the way back; answers identical; "
        "2 ranks asked all, 3 after them nothing"
    )


def main(kills: int, num_requests: int, seed: int, folder: Path) -> str:
    """Starts a server, and runs all against it."""
    log = folder / "received.jsonl"
    command = [sys.executable, HELPERS / "chat_server.py", "0", log, "--seconds", "0.05"]
    server = subprocess.Popen([*command, "--jitter", "0.9"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        client = openai.OpenAI(base_url=url, api_key="none")
        question = {"role": "user", "content": "in use before the forks"}
        client.chat.completions.create(model="served", messages=[question])
        log.write_text("")
        trial = Trial(folder, url, log, num_requests)
        return kill_and_compare(trial, kills, random.Random(seed))
    finally:
        server.kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="Number of kills.")
    parser.add_argument("--requests", type=int, default=2000, help="Number of requests.")
    parser.add_argument("--seed", type=int, default=0, help="Of the moments.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(main(options.kills, options.requests, options.seed, Path(name)))
