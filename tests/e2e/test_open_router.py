"""A router on loopback without any API key: open to programs of this machine, closed to pages of other sites."""

import httpx
import pytest

from tests.e2e.security.raw import say
from tests.e2e.workers import TWO
from tests.support.stack import Stack

pytestmark = pytest.mark.parametrize("stack", [TWO], indirect=True)


def test_a_foreign_host_name_is_rejected(stack: Stack) -> None:
    rebound = say(stack.port, b"GET /admin/functions HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    own = httpx.get(f"{stack.url}/admin/functions", trust_env=False)

    assert rebound.statuses == [403]
    assert own.status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/admin/hosts/x/cordon"])
def test_a_page_of_another_site_cannot_change_anything(stack: Stack, path: str) -> None:
    posted = httpx.post(f"{stack.url}{path}", headers={"origin": "http://evil.example"}, trust_env=False)

    assert posted.status_code == 403


def test_a_caller_without_a_key_is_told_that_stored_responses_need_one(stack: Stack) -> None:
    ask = {"model": "fake/steps", "input": "a"}
    refused = stack.http.post("/v1/responses", json={**ask, "background": True})
    plain = stack.http.post("/v1/responses", json=ask)

    assert refused.status_code == 400 and "API key" in refused.json()["error"]["message"]
    assert (plain.status_code, plain.json()["store"]) == (200, False)
