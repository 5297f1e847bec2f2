"""Forms of hostile clients: what they cost, what they reach, and what they learn."""

import contextlib
import socket
from collections.abc import Iterator

import psutil
import pytest

from tests.e2e.security.keyed import Keyed
from tests.e2e.security.raw import say
from tests.support.stack import eventually

pytestmark = pytest.mark.xdist_group("security")

PATH = "/v1/audio/transcriptions"
MIB = 1024 * 1024
CROWD = 60


def head(keyed: Keyed, length: int, *lines: str, key: str = "inference") -> bytes:
    """Return the head of a form's request."""
    own = [f"authorization: Bearer {keyed.keys[key]}"] if key else []
    first = [f"POST {PATH} HTTP/1.1", "Host: localhost", "Content-Type: multipart/form-data; boundary=b"]
    return "\r\n".join([*first, *own, *lines, f"Content-Length: {length}", "", ""]).encode()


def form(model: str, data: bytes = b"x", *, file_first: bool = False) -> bytes:
    named = f'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n{model}\r\n'.encode()
    file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%b\r\n' % data
    return (file + named if file_first else named + file) + b"--b--\r\n"


def test_a_form_without_a_key_is_refused_before_it_is_sent(keyed: Keyed) -> None:
    answer = say(keyed.stack.port, head(keyed, 5 * MIB, "Expect: 100-continue", key=""))

    assert answer.statuses == [401]


def test_a_form_that_declares_too_much_is_refused_before_it_is_sent(keyed: Keyed) -> None:
    answer = say(keyed.stack.port, head(keyed, 10**15, "Expect: 100-continue"))

    assert answer.statuses == [413]


@pytest.mark.parametrize("file_first", [False, True])
def test_a_form_for_another_keys_function_is_one_for_an_unknown_model(keyed: Keyed, file_first: bool) -> None:
    answers = []
    with keyed.client("inference") as http:
        for model in ("two/hears", "two/unknown"):
            body = form(model, b"x" * MIB, file_first=file_first)
            kind = {"content-type": "multipart/form-data; boundary=b"}
            answers.append(http.post(PATH, content=body, headers=kind))

    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].json()["error"]["code"] == answers[1].json()["error"]["code"]


def test_an_error_names_no_function_of_another_key(keyed: Keyed) -> None:
    with keyed.client("inference") as http:
        answer = http.post(PATH, files={"file": b"x"}, data={"model": "one/open"})
    with keyed.client("other") as http:
        other = http.post("/v1/audio/speech", json={"model": "two/other", "input": "x"})

    assert (answer.status_code, other.status_code) == (400, 400)
    assert "one/dictation" in answer.text
    assert "two/" not in answer.text
    assert "one/" not in other.text


@pytest.mark.long
def test_a_form_cannot_smuggle_a_second_request_or_field(keyed: Keyed) -> None:
    inner = b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n" + form("two/hears")
    body = form("one/dictation", inner.replace(b"--b", b"--c"))

    answer = say(keyed.stack.port, head(keyed, len(body)) + body, silence_s=15)

    assert answer.statuses == [200]
    assert b"one two" in answer.raw


def test_a_worker_is_not_reached_by_a_form_that_names_two_models(keyed: Keyed) -> None:
    body = form("one/dictation")[: -len(b"--b--\r\n")] + form("two/hears")

    answer = say(keyed.stack.port, head(keyed, len(body)) + body)

    assert answer.statuses == [400]


@contextlib.contextmanager
def crowd(keyed: Keyed, data: bytes) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(CROWD):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", keyed.stack.port), timeout=10))
            connection.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                connection.sendall(data)
        yield


def rss(keyed: Keyed) -> int:
    """Return the memory of the routers, in bytes."""
    return sum(p.memory_info().rss for p in keyed.stack.processes() if "router" in p.cmdline())


@pytest.mark.long
def test_held_uploads_of_one_key_cost_little_memory_and_hold_up_no_other_key(keyed: Keyed) -> None:
    before = rss(keyed)
    body = form("one/loads", b"x" * (2 * MIB))
    with crowd(keyed, head(keyed, 500 * MIB) + body[:-9]):
        eventually(lambda: waiting(keyed) == CROWD, what="the uploads to wait")
        large = keyed.ask("other", "two/other", messages=[{"role": "user", "content": "x " * 200_000}])

        assert large.status_code == 200
        assert rss(keyed) - before < CROWD * MIB
    with keyed.client("local") as http:
        for request in http.get("/admin/requests").json()["requests"]:
            http.post(f"/admin/requests/{request['id']}/cancel")
    eventually(lambda: waiting(keyed) == 0, what="the uploads to end")


def waiting(keyed: Keyed) -> int:
    with keyed.client("local") as http:
        live = http.get("/admin/requests", params={"limit": 500}).json()["requests"]
    return sum(r["function"] == "one/loads" and r["phase"] == "waiting" for r in live)


def test_forms_that_are_never_finished_are_given_up(keyed: Keyed) -> None:
    """Each waits for its model; a client that sends nothing more is disconnected by the pace of bodies."""
    with socket.create_connection(("127.0.0.1", keyed.stack.port), timeout=10) as connection:
        connection.sendall(head(keyed, MIB) + form("one/dictation", file_first=True)[:60])
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)

    assert answer == b"" or b" 400 " in answer or b" 408 " in answer


def test_no_router_has_a_temporary_file_after_forms_whose_file_came_first(keyed: Keyed) -> None:
    body = form("one/dictation", b"x" * (3 * MIB), file_first=True)
    answer = say(keyed.stack.port, head(keyed, len(body), "Connection: close") + body, silence_s=15)
    routers = [p for p in keyed.stack.processes() if "router" in p.cmdline()]

    assert answer.statuses == [200]
    eventually(
        lambda: not [f for p in routers for f in psutil.Process(p.pid).open_files() if "deleted" in f.path],
        what="the file to be closed",
    )
