"""A forged host's record in Redis gets only a token that opens no agent."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import msgspec
import pytest
import redis

from cortex.platform.agent_messages import Ensure
from tests.e2e.security.keyed import Keyed
from tests.support.factories import a_function
from tests.support.stack import eventually

pytestmark = pytest.mark.xdist_group("security")


@contextmanager
def listening(messages: list[str]) -> Iterator[str]:
    """Answer every request with 500 and note its Authorization; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            messages.append(self.headers.get("authorization", ""))
            self.send_response(500)
            self.end_headers()

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()


def test_a_token_sent_to_a_forged_host_opens_no_agent(keyed: Keyed) -> None:
    agent = f"http://{keyed.stack.env['CORTEX_AGENT__LISTEN']}"
    messages: list[str] = []
    with listening(messages) as url, redis.Redis.from_url(keyed.redis_url) as record:
        (real,) = (name for name in record.smembers("cortex:hosts") if name)
        forged = msgspec.json.decode(record.get(b"cortex:host:" + real)) | {"name": "forged", "address": url}
        record.set("cortex:host:forged", msgspec.json.encode(forged), px=20_000)
        record.sadd("cortex:hosts", "forged")
        record.publish("cortex:changed", "host:forged")
        try:
            with keyed.client("status") as http:
                eventually(
                    lambda: http.get("/admin/weights").is_success and messages, what="the forged host to be called"
                )
        finally:
            record.delete("cortex:host:forged")
            record.publish("cortex:changed", "removed:forged")
    with httpx.Client(base_url=agent, headers={"authorization": messages[0]}, trust_env=False) as http:
        start = msgspec.json.encode(Ensure(a_function()))

        answers = {path: http.get(path).status_code for path in ("/record", "/weights", "/logs", "/instances")}
        answers["/functions/ensure"] = http.post("/functions/ensure", content=start).status_code

    assert messages[0].startswith("Bearer ")
    assert set(answers.values()) == {401}
