"""A page of another site with an API key, and the status page below a path of a proxy."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.catalogues import fake
from tests.support.nginx import nginx
from tests.support.stack import Stack, own_redis

ROOT = "/cortex"
ASK = """async ([url, key, credentials]) => {
  try {
    const answer = await fetch(url + "/v1/chat/completions", {
      method: "POST", credentials, headers: {authorization: `Bearer ${key}`, "content-type": "application/json",
        "x-stainless-lang": "js"},
      body: JSON.stringify({model: "fake/one", stream: true, messages: [{role: "user", content: "Hello!"}]}),
    });
    return [answer.status, answer.headers.get("x-request-id") !== null, await answer.text()];
  } catch (error) { return [error.name]; }
}"""
READ = "(url) => fetch(url).then((a) => a.status, (error) => error.name)"


@pytest.fixture(scope="module")
def sites() -> Iterator[list[str]]:
    """Two origins with an empty page each: the first is listed."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield [f"http://127.0.0.1:{server.server_port}" for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, sites: list[str]) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("sites")
    with own_redis(folder) as url:
        env = {
            "CORTEX_REDIS_URL": url,
            "CORTEX_GATEWAY__CORS_ORIGINS": json.dumps(sites[:1]),
            "CORTEX_GATEWAY__ROOT_PATH": ROOT,
        }
        running = Stack(folder, fake("fake/one", "--answer", "one two"), env=env)
        try:
            yield running
        finally:
            running.end()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context()
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    yield opened
    context.close()


def test_a_page_of_a_listed_origin_reads_a_stream_with_its_key(stack: Stack, sites: list[str], page: Any) -> None:
    page.goto(sites[0])

    status, has_id, text = page.evaluate(ASK, [stack.url, stack.local_key(), "same-origin"])

    assert (status, has_id) == (200, True)
    assert text.endswith("data: [DONE]\n\n")
    assert page.evaluate(ASK, [stack.url, "wrong", "same-origin"])[0] == 403


def test_a_page_of_another_origin_reads_nothing(stack: Stack, sites: list[str], page: Any) -> None:
    page.goto(sites[1])

    assert page.evaluate(ASK, [stack.url, stack.local_key(), "same-origin"]) == ["TypeError"]
    assert page.evaluate(READ, f"{stack.url}/v1/models") == "TypeError"


def test_a_listed_origin_has_no_credentials_and_no_operators_pages(stack: Stack, sites: list[str], page: Any) -> None:
    page.goto(sites[0])

    assert page.evaluate(ASK, [stack.url, stack.local_key(), "include"]) == ["TypeError"]
    assert page.evaluate(READ, f"{stack.url}/admin/functions") == "TypeError"
    assert page.evaluate(READ, f"{stack.url}/v1/models") == 403  # readable, and refused without a key


@pytest.mark.parametrize("removes_path", [True, False])
def test_the_page_works_below_a_path_of_a_proxy(stack: Stack, page: Any, tmp_path: Path, removes_path: bool) -> None:
    stack.chat("fake/one")
    stack.cli("fn", "unpin", "fake/one")
    failures: list[str] = []
    page.on("response", lambda answer: failures.append(answer.url) if answer.status >= 400 else None)
    page.on("pageerror", lambda error: failures.append(str(error)))
    with nginx(tmp_path, stack.url, ROOT, removes_path=removes_path) as url:
        page.goto(f"{url}/status/login#key={stack.local_key()}")
        page.wait_for_url(f"{url}/status")
        page.wait_for_selector('#link[data-state="live"]')
        page.locator('#functions > tr[data-id="fake/one"] button.link').click()
        panel = page.locator("#panel")
        panel.get_by_role("button", name="Pin…").click()
        panel.get_by_role("heading", name="Pin ").wait_for()
        panel.get_by_role("button", name="Pin", exact=True).click()
        page.get_by_text("done").first.wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url(f"{url}/status/login")

    assert failures == []
    assert stack.function("fake/one")["pinned"]
