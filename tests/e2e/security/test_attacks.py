"""Hostile requests, byte by byte, to a running router and agent."""

import json
import select
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from cortex.platform.serving.http_limits import BODY_S, HEAD_S
from tests.e2e.security.keyed import Keyed
from tests.e2e.security.raw import say
from tests.support.stack import eventually

pytestmark = pytest.mark.xdist_group("security")
BODY = json.dumps({"model": "one/open", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}).encode()


def request(
    keyed: Keyed, *lines: str, body: bytes = BODY, length: bool = True, path: str = "/v1/chat/completions"
) -> bytes:
    """Return a request as bytes; `lines` are more headers, exactly as they are."""
    head = [f"POST {path} HTTP/1.1", "Host: cortex", f"x-api-key: {keyed.keys['inference']}", *lines]
    if length:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


HEADERS_READ = [
    b"traceparent", b"tracestate", b"x-request-id", b"x-api-key", b"authorization", b"cookie", b"content-type",
    b"accept", b"anthropic-version", b"x-session-affinity", b"x-session-id", b"session-id", b"user-agent", b"origin",
    b"host", b"sec-fetch-site", b"x-forwarded-for", b"x-forwarded-proto", b"content-encoding", b"accept-encoding",
    b"expect",
]  # fmt: skip
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: evil\r\n\r\n"


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (["Content-Length: 5"], BODY),
        (["Content-Length: 5, 5"], BODY),
        (["Content-Length: +5"], BODY),
        (["Content-Length: 0x5"], BODY),
        (["Content-Length: -1"], BODY),
        (["Content-Length : 5"], BODY),
        (["Content-Length: 99999999999999999999999999"], BODY),
        (["Transfer-Encoding: chunked"], b"0\r\n\r\n" + SMUGGLED),
        (["Transfer-Encoding: chunked", "Transfer-Encoding: identity"], b"0\r\n\r\n" + SMUGGLED),
        (["Transfer-Encoding: xchunked"], b"0\r\n\r\n" + SMUGGLED),
        (["Transfer-Encoding : chunked"], b"0\r\n\r\n" + SMUGGLED),
        (["Transfer-Encoding: chunked, identity"], b"0\r\n\r\n" + SMUGGLED),
        ([" folded: header"], BODY),
        (["no-colon"], BODY),
        (["bare\nnewline: x"], BODY),
        (["nul: a\0b"], BODY),
    ],
)
def test_an_ambiguous_request_is_rejected(keyed: Keyed, lines: list[str], body: bytes) -> None:
    reply = say(keyed.stack.port, request(keyed, *lines, body=body))

    assert reply.closed
    assert len(reply.statuses) == 1
    assert reply.statuses[0] in (400, 415)


@pytest.mark.parametrize(
    "chunks",
    [
        b"ffffffffffffffffffff\r\nx",
        b"-1\r\nx\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\n0\n\n",
        b"zz\r\nhello\r\n0\r\n\r\n",
        b"5;" + b"a" * 200_000 + b"\r\nhello\r\n0\r\n\r\n",
        b"1\r\n{\r\n" * 3 + b"0\r\n\r\n",
        b"0\r\n" + b"trailer: x\r\n" * 50_000 + b"\r\n",
    ],
    ids=["huge", "negative", "hex-prefix", "bare-newlines", "letters", "long-extension", "no-json", "many-trailers"],
)
def test_an_invalid_chunk_is_a_bad_request(keyed: Keyed, chunks: bytes) -> None:
    reply = say(
        keyed.stack.port,
        request(keyed, "Transfer-Encoding: chunked", "Connection: close", body=b"", length=False) + chunks,
        half_close=True,
    )

    assert [s for s in reply.statuses if s >= 500] == []
    assert [s for s in reply.statuses if s == 200] == []
    assert reply.closed


def test_pipelined_requests_are_answered_in_order(keyed: Keyed) -> None:
    first = request(keyed, "x-request-id: first")
    closed = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nx-request-id: second\r\n\r\n"
    third = request(keyed, "x-request-id: third", "Connection: close")

    reply = say(keyed.stack.port, first + closed + third, silence_s=5)

    assert reply.statuses == [200, 401, 200]
    places = [reply.raw.index(b"\r\nx-request-id: " + name) for name in (b"first", b"second", b"third")]
    assert places == sorted(places)


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.0"])
def test_upgrade_requests_are_ignored(keyed: Keyed, upgrade: str) -> None:
    reply = say(
        keyed.stack.port,
        f"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: {upgrade}\r\n\r\n".encode(),
        silence_s=3,
    )

    assert 101 not in reply.statuses
    assert [s for s in reply.statuses if s >= 500] == []


@pytest.mark.parametrize(
    "name",
    [
        "a\r\nx-evil: 1",
        "a\nb",
        "a\0b",
        "../../etc/passwd",
        "one/../two/other",
        "%2e%2e/x",
        "\u2028",
        "é" * 300,
        "x" * 100_000,
    ],
)
def test_a_hostile_model_name_is_unknown_and_escaped(keyed: Keyed, name: str) -> None:
    answer = keyed.ask("inference", name)
    with keyed.client("inference") as http:
        looked = http.get("/v1/models/" + "".join(f"%{b:02x}" for b in name.encode())[:3000])

    for one in (answer, looked):
        assert one.status_code in (400, 403, 404)
        assert "x-evil" not in one.headers
        assert len(one.content) < 2000
        assert one.json()["error"]["message"]


@pytest.mark.parametrize("value", ["a\tb", "x" * 129, "é", "a b", "<script>", "%0d%0aset-cookie:x"])
def test_an_unsafe_request_id_is_replaced(keyed: Keyed, value: str) -> None:
    reply = say(keyed.stack.port, request(keyed, f"x-request-id: {value}", "Connection: close"), silence_s=5)

    assert reply.statuses == [200]
    assert b"\r\nx-request-id: req_" in reply.raw
    assert value.encode("latin-1") not in reply.raw


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model":"one/open","messages":' + b'[{"role":"user","content":' * 5000 + b"1" + b"}]" * 5000 + b"}",
        b'{"model":"one/open","messages":[],"max_tokens":1e999999}',
        b'{"model":"one/open","messages":[],"seed":' + b"9" * 100_000 + b"}",
        b'{"model":"one/open\\u0000","messages":[]}',
        b'{"model":"\\ud800","messages":[]}',
        b"\xff\xfe{}",
        b"",
        b"null",
        b'{"model": {"$ref": "#"}}',
    ],
    ids=lambda b: repr(b[:24]),
)
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings", "/api/embed", "/api/embeddings"]
)
def test_hostile_bodies_are_rejected_at_once(keyed: Keyed, path: str, body: bytes) -> None:
    began = time.monotonic()
    with keyed.client("inference") as http:
        answer = http.post(path, content=body)

    assert answer.status_code in (400, 404)
    assert answer.json()["error"] if path.startswith("/api/") else answer.json()["error"]["message"]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 400), ("deflate", 415), ("br", 415), ("gzip, gzip", 415)])
def test_bodies_that_cannot_be_unpacked_are_refused(keyed: Keyed, encoding: str, status: int) -> None:
    with keyed.client("inference") as http:
        answer = http.post("/v1/chat/completions", content=b"\x1f\x8b" * 100, headers={"content-encoding": encoding})

    assert answer.status_code == status


def port_of(keyed: Keyed, where: str) -> int:
    """Return a port of the running cortex: the router's, the agent's or that of the metrics."""
    settings = {"agent": "CORTEX_AGENT__LISTEN", "metrics": "CORTEX_GATEWAY__METRICS_LISTEN"}
    return keyed.stack.port if where == "router" else int(keyed.stack.env[settings[where]].rpartition(":")[2])


EVERY_PORT = pytest.mark.parametrize("where", ["router", "agent", "metrics"])
POST = b"POST /status/login HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@EVERY_PORT
@pytest.mark.parametrize(
    "data",
    [
        CHUNKED + b"0\r\n" + b"a: b\r\n" * 200_000,
        CHUNKED + b"0\r\na: " + b"b" * 1_000_000,
        CHUNKED + b"5;" + b"a" * 1_000_000,
        CHUNKED + (b"1;" + b"a" * 5000 + b"\r\nx\r\n") * 200,
        CHUNKED + (b"10000\r\n" + b"a" * 65536 + b"\r\n") * 100,
        POST + b"Content-Length: 60000000\r\n\r\n" + b"a" * 3_000_000,
        b"\r\n" * 100_000,
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 1000,
    ],
    ids=["trailers", "long-trailer", "extension", "extensions", "chunked-body", "body", "empty-lines", "pipelined"],
)
def test_every_listener_cuts_endless_requests(keyed: Keyed, where: str, data: bytes) -> None:
    answer = say(port_of(keyed, where), data, silence_s=5)

    assert answer.closed
    assert not {s for s in answer.statuses if s >= 500} - {503}


@pytest.mark.long
def test_every_listener_closes_connections_without_a_complete_request(keyed: Keyed) -> None:
    token = (keyed.stack.folder / "state" / "cortex" / "fleet.token").read_text().strip().encode()
    head = b"GET /health HTTP/1.1\r\nHost: x\r\n"
    reads_body = {"router": POST, "metrics": b"GET /metrics HTTP/1.1\r\nHost: x\r\n"} | {
        "agent": b"POST /functions/ensure HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n" % token
    }
    sockets = {}
    for where in ("router", "agent", "metrics"):
        for name, data in {
            "silent": b"",
            "an empty line": b"\r\n",
            "half a head": head,
            "half a second head": head + b"\r\nGET",
            "half a body": reads_body[where] + b"Content-Length: 20\r\n\r\n{",
            "half a chunk": reads_body[where] + b"Transfer-Encoding: chunked\r\n\r\n8\r\n{",
            "half a trailer": reads_body[where] + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\na: b",
        }.items():
            sockets[where, name] = socket.create_connection(("127.0.0.1", port_of(keyed, where)))
            sockets[where, name].sendall(data)

    open_, deadline = dict(sockets), time.monotonic() + BODY_S + HEAD_S
    while open_ and time.monotonic() < deadline:
        readable, _, _ = select.select(list(open_.values()), [], [], 1)
        open_ = {name: one for name, one in open_.items() if one not in readable or not ended(one)}
    for one in sockets.values():
        one.close()

    assert not open_


def ended(connection: socket.socket) -> bool:
    """Read what has come; whether that was the end."""
    try:
        return not connection.recv(65536)
    except ConnectionError:
        return True


@pytest.mark.parametrize("name", HEADERS_READ)
@pytest.mark.parametrize(
    "value", [b"\xff\xfe", b"", b"a" * 8000, b"\xc3\xa9; =;\x80", b"0", b"9" * 400], ids=lambda v: repr(v[:12])
)
def test_no_header_value_breaks_a_request_or_leaves_it_listed(keyed: Keyed, name: bytes, value: bytes) -> None:
    lines = b"\r\n%b: %b\r\n%b: %b" % (name, value, name, b"second")
    head = request(keyed, "Connection: close").replace(b"\r\n\r\n", lines + b"\r\n\r\n", 1)

    answer = say(keyed.stack.port, head, silence_s=10)

    assert answer.closed
    assert len(answer.statuses) == 1
    assert answer.statuses[0] < 500
    with keyed.client("admin") as http:

        def is_at_rest() -> bool:
            listing = http.get("/admin/requests", params={"function": "one/open"})
            assert listing.status_code == 200, listing.text
            return not listing.json()["requests"]

        eventually(is_at_rest, within_s=5, what="no request to be under way")


@pytest.mark.parametrize("value", [b"\xff", b"a" * 8000, b"application/\xe9; charset=\xff", b"application/x-msgpack"])
@pytest.mark.parametrize(
    "name", [b"authorization", b"content-type", b"accept", b"cookie", b"x-forwarded-for", b"range"]
)
def test_no_header_value_breaks_an_agent_or_the_metrics_port(keyed: Keyed, name: bytes, value: bytes) -> None:
    token = (keyed.stack.folder / "state" / "cortex" / "fleet.token").read_text().strip().encode()
    line = b"%b: %b\r\n" % (name, value)
    post = b"POST /models/unload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n"
    get = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"

    agent = say(port_of(keyed, "agent"), post + line + b"Authorization: Bearer " + token + b"\r\n\r\n{}", silence_s=5)
    metrics = say(port_of(keyed, "metrics"), get + line + b"\r\n", silence_s=5)

    assert [s for s in (*agent.statuses, *metrics.statuses) if s >= 500] == []
    assert len(agent.statuses) == len(metrics.statuses) == 1


def test_the_metrics_port_rejects_foreign_host_names(keyed: Keyed) -> None:
    answer = say(port_of(keyed, "metrics"), b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")

    assert answer.statuses == [403]
    assert b"cortex_" not in answer.raw


@EVERY_PORT
@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x", 414),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 70_000, 431),
        (b"GET /health HTTP/1.1\r\nHost: x" + b"\r\nA: b" * 200, 431),
        (b"GET /health HTTP/1.1\r\nHost: x", 200),
    ],
    ids=["url", "header", "headers", "fine"],
)
def test_every_listener_rejects_a_head_that_is_too_large(keyed: Keyed, where: str, head: bytes, status: int) -> None:
    if where == "metrics":
        head = head.replace(b"/health", b"/metrics").replace(b"Host: x", b"Host: localhost")

    answer = say(port_of(keyed, where), head + b"\r\nConnection: close\r\n\r\n", silence_s=3)

    assert answer.closed
    assert answer.statuses in (
        [status],
        [] if status != 200 else [200],
    )  # the last words of a cut connection may be lost


def test_a_body_that_is_too_large_is_rejected_by_its_length(keyed: Keyed) -> None:
    reply = say(
        keyed.stack.port,
        request(keyed, f"Content-Length: {10**10}", "Connection: close", body=b"{", length=False),
        silence_s=3,
    )

    assert reply.statuses == [413]


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest/meta-data", "http://127.0.0.1:6379/", "file:///etc/passwd", "gopher://x", "//x"],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat"])
def test_no_address_in_a_request_is_fetched(keyed: Keyed, path: str, url: str) -> None:
    messages: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"content": [{"type": "image_url", "image_url": {"url": url}}]},
        "/v1/messages": {"content": [{"type": "image", "source": {"type": "url", "url": url}}]},
        "/v1/responses": {"content": [{"type": "input_image", "image_url": url}]},
        "/api/chat": {"content": "x", "images": [url]},
    }
    message = {"role": "user", **messages[path]}
    words = "input" if path == "/v1/responses" else "messages"
    with keyed.client("inference") as http:
        answer = http.post(path, json={"model": "one/open", "max_tokens": 1, words: [message]})

    assert answer.status_code == 400
    assert "image" in str(answer.json()["error"])


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "https://evil.example", "access-control-request-method": "POST"},
    ],
)
def test_no_cors_header_is_sent(keyed: Keyed, headers: dict[str, str]) -> None:
    with keyed.client("admin") as http:
        answers = [
            http.request(method, path, headers=headers)
            for method in ("OPTIONS", "GET")
            for path in ("/v1/models", "/admin/functions", "/health", "/status")
        ]

    assert not [h for a in answers for h in a.headers if h.startswith("access-control-")]


def test_a_cookie_sent_from_another_site_changes_nothing(keyed: Keyed) -> None:
    with keyed.client() as http:
        answer = http.post("/status/login", data={"key": keyed.keys["admin"]}).headers["set-cookie"]
        http.cookies.clear()
        cookie = {"cookie": answer.partition(";")[0]}
        read = http.get("/admin/functions", headers=cookie)
        theirs = http.post("/admin/functions/one%2Fopen/cool", headers={**cookie, "sec-fetch-site": "cross-site"})
        plain = http.post("/admin/functions/one%2Fopen/cool", headers=cookie)
        ours = http.post("/admin/functions/nobody/cool", headers={**cookie, "sec-fetch-site": "same-origin"})

    assert (read.status_code, theirs.status_code, plain.status_code, ours.status_code) == (200, 403, 403, 404)


def test_a_request_cannot_forge_a_log_line(keyed: Keyed) -> None:
    forged = '\n{"event": "forged_event", "level": "critical"}'
    with keyed.client("wrong" + forged.replace("\n", " ")) as http:
        http.get("/v1/models" + "%0a" + "forged_event")
        http.post("/admin/functions/%0a%7B%22event%22%3A%22forged_event%22%7D/warm")
    keyed.ask("inference", forged)
    keyed.ask("inference", messages=[{"role": "user", "content": "forged_event" + forged}], stream="\n")

    for line in keyed.stack.log("router").splitlines():
        assert not line.lstrip().startswith('{"event": "forged_event"')
        if line.startswith("{"):
            assert json.loads(line)["event"] != "forged_event"


@pytest.mark.parametrize(
    "path",
    [
        "/instances/..%2f..%2f..%2fetc%2fpasswd/logs",
        "/instances/%2e%2e/logs",
        "/instances/x%00/logs",
        "/instances//etc/passwd/logs",
        "/models/..%2f..%2fetc%2fpasswd/endpoint",
        "/../../etc/passwd",
    ],
)
def test_an_agent_serves_only_its_workers_logs(keyed: Keyed, path: str) -> None:
    token = (keyed.stack.folder / "state" / "cortex" / "fleet.token").read_text().strip()
    port = int(keyed.stack.env["CORTEX_AGENT__LISTEN"].rpartition(":")[2])

    reply = say(
        port, f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n".encode()
    )

    assert reply.statuses[0] in (400, 404)
    assert b"root:" not in reply.raw


def test_no_shell_interprets_a_catalogues_arguments(keyed: Keyed, tmp_path: Path) -> None:
    mark = tmp_path / "touched"
    text = keyed.stack.models.read_text()
    attack = f"; touch {mark}; $(touch {mark}) `touch {mark}` | touch {mark} \n touch {mark}"
    entry = f'\n[[models]]\nid = "two/shell"\nengine = "fake"\nargs = ["--answer", {json.dumps(attack)}]\n'
    cut = text.index("[aliases]")
    keyed.stack.models.write_text(text[:cut] + entry + text[cut:])
    try:
        deadline = time.monotonic() + 10
        while (answer := keyed.ask("other", "two/shell")).status_code == 404 and time.monotonic() < deadline:
            pass
    finally:
        keyed.stack.models.write_text(text)

    assert answer.status_code == 200
    assert not mark.exists()
