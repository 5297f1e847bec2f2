"""The commands' HTTP connection."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cortex.cli.client import Router
from cortex.cli.connection import ERRORS, Connection
from cortex.cli.exits import UNREACHABLE, USAGE, Failed

HALVES = {
    "/base/half": b"Content-Length: 100\r\n\r\nhalf",
    "/base/half-a-chunk": b"Transfer-Encoding: chunked\r\n\r\n64\r\nhalf",
    "/base/a-chunk": b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
}


class Handler(BaseHTTPRequestHandler):
    """Answers as its path says, and keeps the connection open."""

    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_GET(self) -> None:
        if self.path in HALVES:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n" + HALVES[self.path])
            self.close_connection = True
            return
        body = f"{self.client_address[1]}\n\nü {self.headers['x-header']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.path == "/base/last"

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/base"
        server.shutdown()
        thread.join()


def read(connection: Connection, path: str) -> str:
    with connection.answer("GET", path, None, timeout_s=5) as answer:
        return answer.read().decode()


def test_a_connection_is_used_again_until_the_server_closes_it(url: str) -> None:
    connection = Connection(url, {"x-header": "value"})

    first, second, third = (read(connection, path) for path in ("/", "/last", "/"))

    assert first.endswith("ü value")
    assert first.split()[0] == second.split()[0]
    assert third.split()[0] != first.split()[0]


def test_an_answer_that_is_not_read_to_its_end_is_no_answer_to_the_next_request(url: str) -> None:
    connection = Connection(url, {"x-header": "value"})

    with connection.answer("GET", "/", None, timeout_s=5):
        pass

    assert read(connection, "/").endswith("value")


@pytest.mark.parametrize("url", ["", "localhost:31313", "ftp://localhost", "http://localhost:port", "http://[::1"])
def test_a_text_that_is_no_url_of_a_router_is_an_error_that_names_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ERRORS):
        read(Connection(url, {}), "/")
    if url:
        monkeypatch.setenv("CORTEX_URL", url)
        with pytest.raises(Failed, match="no router answers at") as failed:
            Router().health()
        assert url in str(failed.value)
        assert failed.value.exit_code == UNREACHABLE


@pytest.mark.parametrize("path", ["/half", "/half-a-chunk", "/a-chunk"])
def test_an_answer_that_ends_early_is_an_error(path: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTEX_URL", url)

    with pytest.raises(Failed, match="no router answers at"):
        list(Router().lines(path, {}))


def test_lines_of_an_answer_come_without_their_ends(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTEX_URL", url)

    port, empty, last = Router().lines("/lines", {})

    assert port.isdigit()
    assert (empty, last) == ("", "ü None")


@pytest.mark.parametrize("key", ["sk-cortex-é", "sk-cortex-1\nx: y"])
def test_a_key_that_no_header_can_have_is_refused_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTEX_API_KEY", key)

    with pytest.raises(Failed, match="CORTEX_API_KEY") as failed:
        Router()

    assert "sk-" not in str(failed.value)
    assert failed.value.exit_code == USAGE
