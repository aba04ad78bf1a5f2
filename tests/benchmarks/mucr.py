"""What MuCR's parts cost, as ratios: matching against reading, questions against their answers.

    python tests/benchmarks/mucr.py

- A training step of the matcher against drawing its groups: below 1, drawing is what takes time,
  and `data.num_workers` helps.
- Asking in batches of groups against asking one question at a time, of a server that takes 50 ms
  for an answer and any number at once: near the number in flight if nothing but the server waits.
- A circular question against a plain one, and five pictures against one composite image, in bytes
  that travel.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from report import ratio
from tenfold.datamodules.mucr import CausalQuestions, SyntheticMuCRDataModule
from tenfold.modules.chat import OpenAIChatBackend
from tenfold.modules.mucr import MuCRModule, SiameseMatcher

SECONDS = 0.05


class Slow(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.server.size += len(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(SECONDS)
        message = {"role": "assistant", "content": "Answer: A"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        data = json.dumps({**body, "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    size = 0


def seconds(run, times=3):
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return best


def matcher() -> None:
    torch.set_num_threads(1)
    data = SyntheticMuCRDataModule(num_test=12, batch_size=12, seed=0)
    drawing = seconds(lambda: next(iter(data.test_dataloader())))
    batch = next(iter(data.test_dataloader()))
    model = SiameseMatcher(cue_weight=1.0)

    def step():
        model._losses(model._outputs(batch), batch["asked"]).mean().backward()

    step()
    share = seconds(step) / drawing
    print(f"matcher: a step takes {share:.2f} of drawing its 12 groups")
    ratio("time, step of the matcher / drawing its groups", share)


def questions() -> None:
    server = Server(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"

    def items(**kwargs):
        pairs = SyntheticMuCRDataModule(num_test=16, image_size=96, tensors=False, seed=0)
        data = CausalQuestions(pairs, ["c2e"], batch_size=16, **kwargs)
        data.setup()
        return next(iter(data.test_dataloader()))

    def ask(form, asked, concurrency=64):
        backend = OpenAIChatBackend(url, "m", max_concurrency=concurrency)
        MuCRModule(backend, input_form=form, tile=96, save_pictures=False).answer(asked)

    plain = items()
    together = seconds(lambda: ask("multi_image", plain), 2)
    alone = seconds(lambda: ask("multi_image", plain, 1), 1)
    print(f"asking: 64 in flight are {alone / together:.1f} times as fast as one by one")
    ratio("questions/s, 64 in flight / one by one", alone / together)
    server.size = 0
    ask("multi_image", plain)
    several, server.size = server.size, 0
    ask("composite", plain)
    print(f"bytes: five pictures travel as {several / server.size:.2f} of one composite image")
    ratio("bytes, five pictures / one composite image", several / server.size)
    times_as_many = len(items(circular=True)) / len(plain)
    print(f"circular: {times_as_many:.0f} questions for one")
    ratio("questions asked, circular / plain", times_as_many)
    server.shutdown()


if __name__ == "__main__":
    matcher()
    questions()
