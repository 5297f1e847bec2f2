"""Web pages of other sites, and a router below a path of its proxy, byte by byte; `tests/browser` has a browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.workers import EMPTY, ORIGIN, ROOT_PATH
from tests.support.catalogues import fake
from tests.support.nginx import nginx
from tests.support.stack import Stack

pytestmark = EMPTY

ASK: dict[str, Any] = {"model": "fake/one", "messages": [{"role": "user", "content": "Hello!"}]}
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}


@pytest.fixture(scope="module")
def stack(empty_stack: Stack) -> Stack:
    empty_stack.serve(fake("fake/one", "--answer", "one two"))
    return empty_stack


@pytest.fixture
def page(stack: Stack) -> Iterator[httpx.Client]:
    """What a page of the listed origin sends, with a key."""
    headers = {"origin": ORIGIN, "sec-fetch-site": "cross-site", "authorization": f"Bearer {stack.local_key()}"}
    with httpx.Client(base_url=stack.url, headers=headers, timeout=30, trust_env=False) as http:
        yield http


def cors_headers(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


READABLE = {"access-control-allow-origin": ORIGIN, "access-control-expose-headers": "*"}


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/messages", "/v1/models", "/v2/rerank", ROOT_PATH + "/v1/models"]
)
def test_a_preflight_without_a_key_is_answered(stack: Stack, path: str) -> None:
    answer = httpx.options(stack.url + path, headers={"origin": ORIGIN, **PREFLIGHT}, trust_env=False)

    assert (answer.status_code, answer.content, answer.headers["vary"]) == (204, b"", "origin")
    assert cors_headers(answer) == READABLE | {
        "access-control-allow-methods": "GET, HEAD, POST, DELETE",
        "access-control-allow-headers": "authorization, *",
        "access-control-max-age": "7200",
    }


def test_answers_streams_and_errors_are_readable_by_the_listed_origin(page: httpx.Client) -> None:
    answers = {
        "models": page.get("/v1/models"),
        "answer": page.post("/v1/chat/completions", json=ASK),
        "stream": page.post("/v1/chat/completions", json={**ASK, "stream": True}),
        "no model": page.post("/v1/chat/completions", json={**ASK, "model": "none"}),
        "no JSON": page.post("/v1/messages", content=b"{"),
        "no path": page.post("/v1/nothing"),
        "no key": page.get("/v1/models", headers={"authorization": "Bearer wrong"}),
    }

    assert {name: cors_headers(answer) for name, answer in answers.items()} == dict.fromkeys(answers, READABLE)
    assert [a.status_code for a in answers.values()] == [200, 200, 200, 404, 400, 404, 403]
    assert answers["stream"].text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("path", ["/health", "/admin/functions", "/status", "/status/login"])
def test_only_the_client_apis_are_readable(page: httpx.Client, path: str) -> None:
    assert cors_headers(page.get(path)) == {}
    assert cors_headers(page.options(path, headers=PREFLIGHT)) == {}


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", ORIGIN + ".evil.example", "http://app.example", "\xe9"]
)
def test_another_origin_may_read_nothing(page: httpx.Client, origin: str) -> None:
    from_there = {**dict.fromkeys(PREFLIGHT, b"x"), "origin": origin.encode("latin-1")}
    headers = httpx.Headers([(name.encode(), value) for name, value in from_there.items()])

    assert cors_headers(page.get("/v1/models", headers=headers)) == {}
    assert cors_headers(page.options("/v1/models", headers=headers)) == {}


def test_a_page_of_the_listed_origin_needs_a_key_even_for_reading_on_a_router_without_keys(stack: Stack) -> None:
    page = {"origin": ORIGIN, "sec-fetch-site": "cross-site"}

    read = httpx.get(f"{stack.url}/v1/models", headers=page, trust_env=False)
    other = httpx.get(f"{stack.url}/v1/models", trust_env=False)

    assert (read.status_code, other.status_code) == (403, 200)
    assert "create an API key and send it" in read.json()["error"]["message"]


@pytest.mark.parametrize("removes_path", [True, False])
def test_a_login_and_the_page_work_below_a_path_of_nginx(stack: Stack, tmp_path: Path, removes_path: bool) -> None:
    with (
        nginx(tmp_path, stack.url, ROOT_PATH, removes_path=removes_path) as url,
        httpx.Client(follow_redirects=True, timeout=30, trust_env=False) as http,
    ):
        entry = http.get(f"{url}/status/")
        page = http.post(f"{url}/status/login", data={"key": stack.local_key()})
        http.headers["sec-fetch-site"] = "same-origin"
        acts = http.post(f"{url}/admin/functions/fake%2Fone/unpin")
        form = http.get(f"{url}/status/login/")
        chat = http.post(f"{url}/v1/chat/completions", json=ASK)
        left = http.post(f"{url}/status/logout")

    assert [str(a.url) for a in (entry, page, form, left)] == [
        f"{url}/status", f"{url}/status", f"{url}/status/login", f"{url}/status/login"
    ]  # fmt: skip
    assert [a.status_code for a in (entry, page, acts, form, chat, left)] == [200] * 6
    assert "Log out" in page.text
    assert 'href="/' not in page.text + form.text


def test_the_root_answer_names_paths_that_the_proxys_clients_can_request(stack: Stack) -> None:
    assert stack.http.get("/").json()["status"] == stack.http.get(ROOT_PATH).json()["status"] == f"{ROOT_PATH}/status"
