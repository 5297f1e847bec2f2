"""A server of one model in plain Python. Its answer is a description of its environment, as JSON.

Run by the machine's own Python, as the user that the agent sets. `python plain_server.py MODEL PORT KEY_FILE PATH…`
tries to read each path.
"""

import json
import os
import resource
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

MODEL, PORT, KEY_FILE, *PATHS = sys.argv[1:]


def _key() -> str:
    with open(KEY_FILE) as file:  # noqa: PTH123
        return file.read()


def _readable(path: str) -> bool:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            file.read(1)
        return True
    except OSError:
        return False


def _seen() -> dict[str, Any]:
    with open("/proc/self/status") as file:  # noqa: PTH123
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    folder = os.environ["TMPDIR"]
    with open(f"{folder}/mine", "w") as file:  # noqa: PTH123
        file.write("mine")
    return {
        "user": os.getuid(),
        "groups": os.getgroups(),
        "no_new_privs": status["NoNewPrivs"],
        "capabilities": [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "temporary": folder,
        "mode": oct(os.stat(folder).st_mode & 0o777),  # noqa: PTH116
        "home": os.environ["HOME"],
        "readable": [path for path in PATHS if _readable(path)],
    }


class Handler(BaseHTTPRequestHandler):
    def _say(self, status: int, output: Any) -> None:
        body = json.dumps(output).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.headers.get("authorization") != f"Bearer {_key()}":
            self._say(401, {})
        else:
            self._say(200, {"data": [{"id": MODEL}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        message = {"role": "assistant", "content": json.dumps(_seen())}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._say(200, {"id": "1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice]})

    def log_message(self, *_: Any) -> None:
        pass


signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
HTTPServer(("127.0.0.1", int(PORT)), Handler).serve_forever()
