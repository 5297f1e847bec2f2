"""A worker of one model that answers as the last message of a request demands.

`python odd_worker.py PORT MODEL [LISTED]`; LISTED, a JSON text, is the name it lists its model by.

A number is a status; `gzip`, `deflate`, `br` an encoding; the rest is in `BEHAVIOURS`. Of a message that ends in a word
of `QUOTES` the worker repeats everything wherever a worker can. Any other message gets a plain answer. It checks no
key, as `command` programs may.
"""

import gzip
import json
import os
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PORT, MODEL = int(sys.argv[1]), sys.argv[2]
LISTED = sys.argv[3] if len(sys.argv) > 3 else json.dumps(MODEL)
ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
WORDS = "Hello you " * 50 + f"from {MODEL}"


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    whole = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
    return b"data: " + json.dumps(whole).encode() + b"\n\n"


def stream() -> bytes:
    return chunk({"content": WORDS}) + chunk({}, "stop") + b"data: [DONE]\n\n"


def plain() -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": WORDS}, "finish_reason": "stop"}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice]}
    ).encode()


def endless(beginning: bytes) -> Iterator[bytes]:
    yield beginning
    while True:
        yield b"x" * (1 << 20)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kind = "application/json"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.whole(200, f'{{"data": [{{"id": {LISTED}, "max_model_len": 1e999}}]}}'.encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        streams, message = bool(body.get("stream")), str(body["messages"][-1]["content"])
        answer = stream() if streams else plain()
        self.kind = "text/event-stream" if streams else "application/json"
        if message in BEHAVIOURS:
            BEHAVIOURS[message](self, streams)
        elif message.isdecimal():
            self.whole(int(message), b'{"error": {"message": "not with that"}}')
        elif message in ENCODINGS:
            self.whole(200, ENCODINGS[message](answer), **{"content-encoding": message})
        elif message.rpartition(" ")[2] in QUOTES:
            print("the prompt is", message, flush=True)
            QUOTES[message.rpartition(" ")[2]](self, message)
        else:
            self.whole(200, answer)

    def whole(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": self.kind, "content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def without_end(self, status: int, beginning: bytes) -> None:
        """Send a body for as long as it is read."""
        self.send_response(status)
        self.send_header("content-type", self.kind)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for piece in endless(beginning):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        except OSError:
            self.close_connection = True

    def bomb(self, streams: bool) -> None:
        """Send 512 MiB, packed a thousandfold."""
        body = gzip.compress(b"data: " if streams else b'"') + 64 * gzip.compress(bytes(8 << 20))
        self.whole(200, body, **{"content-encoding": "gzip"})

    def engine_dies(self, streams: bool) -> None:
        """Answer as vLLM's front whose engine has ended, and exit like it; the next process of the model is well."""
        mark = Path(os.environ["TMPDIR"]).parent / f"died-{os.getppid()}-{MODEL.replace('/', '-')}"
        if mark.exists():
            return self.whole(200, stream() if streams else plain())
        mark.touch()
        threading.Timer(1.0, lambda: os._exit(0)).start()
        error = json.dumps({"error": {"message": ENGINE_DEAD, "type": "InternalServerError", "code": 500}}).encode()
        if streams:
            return self.whole(200, b"data: " + error + b"\n\ndata: [DONE]\n\n")
        return self.whole(500, error)


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": lambda data: data,
}
BEHAVIOURS: dict[str, Callable[[Handler, bool], None]] = {
    "endless": lambda worker, streams: worker.without_end(200, b"data: " if streams else b'"'),
    "endless error": lambda worker, _: worker.without_end(500, b"it went wrong, "),
    "bomb": Handler.bomb,
    "engine dies": Handler.engine_dies,
    "redirect": lambda worker, _: worker.whole(307, b"", location="http://127.0.0.1:9/elsewhere"),
}


def _error(status: int) -> Callable[[Handler, str], None]:
    def answer(worker: Handler, message: str) -> None:
        worker.whole(status, json.dumps({"error": {"message": f"cannot do {message!r}", "param": message}}).encode())

    return answer


def _broken(worker: Handler, message: str) -> None:
    worker.wfile.write(b"HTTP/1.1 OK " + message.encode() + b"\r\n" + message.encode() + b"\r\n\r\n")
    worker.close_connection = True


def _dying(worker: Handler, message: str) -> None:
    os._exit(3)


def _cut(worker: Handler, message: str) -> None:
    worker.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n\r\n" + message.encode())
    worker.close_connection = True


QUOTES: dict[str, Callable[[Handler, str], None]] = {
    "refused": _error(400),
    "failed": _error(500),
    "forbidden": _error(403),
    "broken": _broken,
    "cut": _cut,
    "garbled": lambda worker, message: worker.whole(200, json.dumps(message).encode()[:-1]),
    "nonsense": lambda worker, message: worker.whole(200, json.dumps({"choices": message, "usage": message}).encode()),
    "encoded": lambda worker, message: worker.whole(200, b"{}", **{"content-encoding": message.partition(" ")[0]}),
    "dying": _dying,
}

sys.stdout.buffer.write(b"\x1b[31mready\x1b[0m \xff\0 now\n")
sys.stdout.buffer.flush()
ThreadingHTTPServer.daemon_threads = True
ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
