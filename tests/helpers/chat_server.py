"""A chat server whose answers and faults a test decides; every request it reads goes to a log.

    python tests/helpers/chat_server.py PORT LOG --seconds 0.5

The answer is a function of the last message: `answer_to`. A message that holds a fault's name meets
that fault, the first time only if it also says "once". One process, one event loop, no framework:
so it serves thousands per second and can break every rule of the protocol.
"""

import argparse
import asyncio
import hashlib
import json
import random
from collections import Counter
from pathlib import Path

FAULTS = ["busy", "away", "broken", "refused", "no text", "truncated", "cut short", "no choices"]
FAULTS += ["slow", "trickling", "closed"]


def text_of(body: dict) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else str([part.get("text") for part in content])


def answer_to(text: str) -> str:
    return f"answer {hashlib.sha256(text.encode()).hexdigest()[:16]} to {text}"


class ChatServer:
    """Serves on a port of 127.0.0.1 until cancelled.

    Attributes:
        seconds: Service time of each request.
        log: Path of a file that gets the text of each request, one per line; one beside it, with
            the suffix `.answered`, the text of each whole answer that was handed to the network.
        in_flight: Requests being served now, and the most there were.
    """

    def __init__(self, log: Path, seconds: float = 0.0, jitter: float = 0.0):
        self.log, self.seconds, self.jitter = log.open("a", buffering=1), seconds, jitter
        self.answered = log.with_suffix(".answered").open("a", buffering=1)
        self.seen: Counter[str] = Counter()
        self.in_flight = self.most_in_flight = 0

    async def serve(self, port: int) -> None:
        server = await asyncio.start_server(self.connection, "127.0.0.1", port, backlog=1024)
        print(server.sockets[0].getsockname()[1], flush=True)
        async with server:
            await server.serve_forever()

    async def connection(self, reader, writer) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
                headers = {name.lower(): value for name, value in headers.items()}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if not await self.respond(
                    head.split()[1], headers, json.loads(body or "{}"), writer
                ):
                    return
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def respond(self, path: str, headers: dict, body: dict, writer) -> bool:
        """Writes one response; returns whether the connection goes on."""
        if path.endswith("/statistics"):
            value = {"most_in_flight": self.most_in_flight, "num_requests": self.seen.total()}
            self.send(writer, 200, json.dumps(value))
            return True
        if not path.startswith("/v1/"):
            self.send(writer, 404, '{"error": {"message": "no such place"}}')
            return True
        text = text_of(body)
        self.seen[text] += 1
        self.log.write(
            json.dumps({"text": text, "body": self.short(body), "headers": headers}) + "\n"
        )
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.seconds * random.uniform(1 - self.jitter, 1 + self.jitter))
            return await self.fault(text, headers, body, writer)
        finally:
            self.in_flight -= 1

    @staticmethod
    def short(body: dict) -> dict:
        return {key: value for key, value in body.items() if key != "messages"}

    async def fault(self, text: str, headers: dict, body: dict, writer) -> bool:
        whole = json.dumps(self.completion(text, headers, body))
        name = next((name for name in FAULTS if name in text), None)
        if name is None or ("once" in text and self.seen[text] > 1):
            self.send(writer, 200, whole)
            self.answered.write(json.dumps(text) + "\n")
        elif name == "busy":
            self.send(writer, 429, '{"error": {"message": "busy"}}', {"Retry-After": "1"})
        elif name == "away":
            self.send(writer, 429, '{"error": {"message": "away"}}', {"Retry-After": "86400"})
        elif name == "no text":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
            writer.write(b"Content-Length: 4\r\n\r\n\xff\xfe\x00\x81")
        elif name == "broken":
            self.send(writer, 500, '{"error": {"message": "broken"}}')
        elif name == "refused":
            key = headers.get("authorization", "")
            value = {"error": {"message": f"bad request by {key}", "code": "too_long"}}
            self.send(writer, 400, json.dumps(value))
        elif name == "no choices":
            self.send(writer, 200, '{"error": {"message": "overloaded"}}')
        elif name == "truncated":  # a whole body that is half a JSON
            self.send(writer, 200, whole[: len(whole) // 2])
        elif name == "cut short":  # half a body
            self.send(writer, 200, whole[: len(whole) // 2], length=len(whole))
            return False
        elif name == "slow":
            await asyncio.sleep(3.0)
            self.send(writer, 200, whole)
        elif name == "trickling":
            for sign in f"HTTP/1.1 200 Status\r\nContent-Length: {len(whole)}\r\n\r\n{whole}":
                writer.write(sign.encode())
                await asyncio.sleep(0.1)
        elif name == "closed":
            return False
        return True

    def completion(self, text: str, headers: dict, body: dict) -> dict:
        choice = {"index": 0, "finish_reason": "stop"}
        answer = headers["authorization"] if "say the key" in text else answer_to(text)
        choice["message"] = {"role": "assistant", "content": answer}
        if body.get("logprobs") and "without logprobs" not in text:
            pairs = [("A", -1.0), (" B", -0.9), ("B", -2.0), ("The", -1.5)][: body["top_logprobs"]]
            top = [{"token": token, "logprob": value, "bytes": None} for token, value in pairs]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        if "tersely" in text:
            return {"choices": [{"message": {"content": answer}}]}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "served",
            "choices": [choice],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }

    @staticmethod
    def send(writer, status: int, body: str, headers: dict | None = None, length: int = 0) -> None:
        lines = [f"HTTP/1.1 {status} Status", "Content-Type: application/json"]
        lines.append(f"Content-Length: {length or len(body.encode())}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("port", type=int, help="0 for a free one, which is printed.")
    parser.add_argument("log", type=Path)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--jitter", type=float, default=0.0, help="Share of the service time.")
    options = parser.parse_args()
    asyncio.run(ChatServer(options.log, options.seconds, options.jitter).serve(options.port))
