"""A worker that writes when it can answer, for the times of the cold path. Plain Python, so that it starts at once.

python cold_worker.py MODEL HOST PORT FILE
"""

import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODEL, HOST, PORT, FILE = sys.argv[1:]
EVENTS = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":'
    b'[{"index":0,"delta":{"role":"assistant","content":"word"},"finish_reason":"stop"}]}\n\n'
    b"data: [DONE]\n\n"
)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one segment: the second one would wait for an acknowledgement

    def _send(self, body: bytes, media_type: str) -> None:
        self.send_response(200)
        self.send_header("content-type", media_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._send(b'{"data":[{"id":"%b"}]}' % MODEL.encode(), "application/json")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._send(EVENTS, "text/event-stream")

    def log_message(self, *_: object) -> None:
        pass


server = ThreadingHTTPServer((HOST, int(PORT)), Handler)
Path(FILE).write_text(str(time.time_ns()))
server.serve_forever()
