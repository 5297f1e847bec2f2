"""The status page over HTTP: its policy, its content and its updates."""

import json
import re
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.catalogues import fake
from tests.support.fleet import Fleet
from tests.support.stack import Stack, eventually, own_redis

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


def news(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    """The events of a stream that is being read."""
    for line in answer.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def test_the_page_is_complete_and_its_policy_allows_no_other_source(stack: Stack) -> None:
    answer = stack.http.get("/status")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["cache-control"] == "no-store"
    for name in ("fake/steps", "tiny/alpha", "broken/engine"):
        assert f'data-id="{name}"' in answer.text


def test_assets_are_cacheable_and_need_no_key(stack: Stack) -> None:
    urls = re.findall(r'(?:src|href)="(status/assets/[^"]+)"', stack.http.get("/status").text)

    answers = [httpx.get(f"{stack.url}/{url}", trust_env=False) for url in urls]

    assert len(answers) == 4
    assert all(a.status_code == 200 and "immutable" in a.headers["cache-control"] for a in answers)
    assert {a.headers["content-type"].partition(";")[0] for a in answers} == {
        "text/css", "text/javascript", "image/svg+xml",
    }  # fmt: skip
    assert stack.http.get("/status/assets/nothing.js").status_code == 404


def test_the_stream_sends_everything_once_and_then_changes_only(stack: Stack) -> None:
    with stack.http.stream("GET", "/status/live") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = news(answer)
        whole = next(e for e in events if e.get("whole"))
        stack.chat("fake/cold")
        changed = next(p for e in events for p in e.get("put", []) if 'data-id="fake/cold"' in p["html"])

    assert whole["now"] > 0
    assert changed["into"] == "functions"
    assert 'data-tone="cold"' not in changed["html"]


def test_a_stream_stays_small_after_a_large_first_event(stack: Stack) -> None:
    with stack.http.stream("GET", "/status/live") as answer:
        first = next(news(answer))

    assert 0 < sum(len(p["html"]) for p in first["put"]) <= 128 * 1024


def test_details_and_the_plan_of_a_warm_are_shown_before_it_is_done(stack: Stack) -> None:
    before = stack.spawned("fake/planned")

    details = stack.http.get("/status/function/fake%2Fplanned")
    plan = stack.http.get("/status/plan", params={"do": "warm", "function": "fake/planned"})

    assert "fake/planned" in details.text
    assert "It would start on here" in unescape(plan.text)
    assert 'data-post="admin/functions/fake%2Fplanned/warm"' in plan.text
    assert stack.spawned("fake/planned") == before
    assert stack.state("fake/planned") == "cold"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/status/function/no/such", 404),
        ("/status/host/nowhere", 404),
        ("/status/plan?do=warm&function=no/such", 404),
        ("/status/plan?do=drain&host=nowhere", 404),
        ("/status/plan?do=destroy", 400),
    ],
)
def test_an_unknown_function_or_host_is_an_error(stack: Stack, path: str, status: int) -> None:
    answer = stack.http.get(path)

    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_a_failed_start_is_shown_with_its_reason_and_a_button_for_its_log(stack: Stack) -> None:
    stack.chat("fake/dies")

    page = eventually(lambda: p if "exited with code 3 while starting" in (p := stack.http.get("/status").text) else "")

    troubles = page[page.index("troubles-title") :]
    assert 'data-open="status/log?function=fake/dies' in troubles
    assert "wrong kind of weights" not in page


def test_an_admin_reads_and_searches_a_workers_log(stack: Stack) -> None:
    stack.chat("fake/dies")
    body = {"function": "fake/dies", "grep": "wrong kind"}
    admin = {"authorization": f"Bearer {stack.local_key()}"}

    shown = stack.http.get("/status/log", params=body, headers=admin)
    nothing = stack.http.get("/status/log", params=body | {"grep": "no matching words"}, headers=admin)
    never = stack.http.get("/status/log", params={"function": "fake/planned", "run": "previous"}, headers=admin)
    looker = stack.http.get("/status/log", params=body)
    failed = stack.http.get("/admin/hosts").json()["hosts"][0]["failures"]
    (instance,) = [f["instance"] for f in failed if f["function"] == "fake/dies"]
    eventually(lambda: instance not in stack.http.get("/admin/instances").text, what="the instance to be gone")
    for path in (stack.folder / "state" / "cortex" / "log" / "workers").rglob(f"*{instance}*"):
        path.unlink()
    gone = stack.http.get("/status/log", params={"function": "fake/dies", "instance": instance}, headers=admin)

    lines = re.findall(r"<pre[^>]*>(.*?)</pre>", shown.text, re.DOTALL)[0].splitlines()
    assert lines
    assert all("wrong kind" in line for line in lines)
    assert "No line matches." in nothing.text
    assert "no host has a log of an earlier run of" in never.text
    assert f"no host has a log of instance &#39;{instance}&#39;" in gone.text
    assert looker.status_code == 401


def test_the_host_page_has_the_eviction_order(stack: Stack) -> None:
    stack.chat("fake/steps")

    shown = stack.http.get("/status/host/here").text

    assert "Eviction order" in shown
    assert "fake/steps" in shown


# Logging in.


def _cookie(answer: httpx.Response) -> str:
    return answer.headers["set-cookie"].partition(";")[0]


def test_a_login_sets_a_cookie_that_scripts_cannot_read(stack: Stack) -> None:
    answer = httpx.post(f"{stack.url}/status/login", data={"key": stack.local_key()}, trust_env=False)

    assert (answer.status_code, answer.headers["location"]) == (303, "../status")
    attributes = answer.headers["set-cookie"].lower()
    assert "httponly" in attributes
    assert "samesite=strict" in attributes
    assert "path=/;" not in attributes + ";"
    assert stack.local_key().lower() not in attributes


def test_a_logout_ends_the_session(stack: Stack) -> None:
    answer = httpx.post(f"{stack.url}/status/login", data={"key": stack.local_key()}, trust_env=False)
    own = {"cookie": _cookie(answer), "sec-fetch-site": "same-origin"}
    act = f"{stack.url}/admin/functions/fake/planned/unpin"
    before = httpx.post(act, headers=own, trust_env=False).status_code

    httpx.post(f"{stack.url}/status/logout", headers=own, trust_env=False)

    assert (before, httpx.post(act, headers=own, trust_env=False).status_code) == (200, 401)


def test_the_cookie_allows_actions_from_the_pages_own_site_only(stack: Stack) -> None:
    answer = httpx.post(f"{stack.url}/status/login", data={"key": stack.local_key()}, trust_env=False)
    own = {"cookie": _cookie(answer), "sec-fetch-site": "same-origin"}
    act = f"{stack.url}/admin/functions/fake/planned/unpin"

    page = httpx.get(f"{stack.url}/status", headers=own, trust_env=False).text

    assert "Log out" in page
    assert httpx.post(act, headers=own, trust_env=False).status_code == 200
    assert httpx.post(act, headers={**own, "sec-fetch-site": "cross-site"}, trust_env=False).status_code == 403


def test_without_a_key_a_plan_is_shown_but_cannot_be_executed(stack: Stack) -> None:
    plan = httpx.get(f"{stack.url}/status/plan", params={"do": "warm", "function": "fake/planned"}, trust_env=False)

    assert "Changes need an admin key" in plan.text
    assert '<button class="primary" disabled' in plan.text
    assert httpx.post(f"{stack.url}/admin/functions/fake/planned/warm", trust_env=False).status_code == 401


def test_a_login_with_a_wrong_key_or_from_another_site_is_rejected(stack: Stack) -> None:
    login = f"{stack.url}/status/login"

    wrong = httpx.post(login, data={"key": "ck_wrong"}, trust_env=False)
    elsewhere = httpx.post(
        login, data={"key": stack.local_key()}, headers={"sec-fetch-site": "cross-site"}, trust_env=False
    )
    long = httpx.post(login, content=b"key=" + b"x" * 10_000, trust_env=False)

    assert (wrong.status_code, elsewhere.status_code, long.status_code) == (401, 403, 400)
    assert not {"set-cookie"} & {*wrong.headers, *elsewhere.headers, *long.headers}
    assert "This key is unknown" in wrong.text


def test_a_logout_deletes_the_cookie(stack: Stack) -> None:
    answer = httpx.post(f"{stack.url}/status/logout", trust_env=False)

    assert answer.headers["location"] == "login"
    assert "max-age=0" in answer.headers["set-cookie"].lower()


def test_every_decision_is_on_the_page(stack: Stack) -> None:
    stack.chat("fake/steps")

    def decided() -> str:
        page = stack.http.get("/status").text
        return page[page.index("decisions-title") :]

    assert eventually(lambda: "fake/steps" in (shown := decided()) and "ready" in shown)


@pytest.mark.parametrize(
    "path", ["functions/fake/steps/cool", "functions/fake/steps/pin", "hosts/here/cordon", "hosts/here/drain"]
)
def test_a_plan_changes_nothing(stack: Stack, path: str) -> None:
    stack.chat("fake/steps")
    before = stack.function("fake/steps")

    answer = stack.http.post(f"/admin/{path}?plan=1")

    assert answer.status_code == 200
    assert (answer.json()["action"], answer.json()["effect"]) == (path.rpartition("/")[2], "change")
    after = stack.function("fake/steps")
    assert (after["state"], after["pinned"]) == (before["state"], before["pinned"])
    assert not any(h["cordoned"] for h in stack.http.get("/admin/hosts").json()["hosts"])


def test_an_open_page_does_not_delay_the_stop_of_a_router(tmp_path: Path) -> None:
    with (
        own_redis(tmp_path) as url,
        Fleet(tmp_path, url, fake("org/model"), {}) as fleet,
        fleet.http.stream("GET", "/status/live") as answer,
    ):
        next(news(answer))
        began = time.monotonic()
        fleet.processes["router"].terminate()

        fleet.processes["router"].wait(15)
        assert time.monotonic() - began < 10  # [gateway] drain_s is 30
