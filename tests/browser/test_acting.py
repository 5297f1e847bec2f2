"""Actions on the page: each shows its plan first, and the record shows its effect."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cortex.functions.lifecycle import State
from tests.browser.conftest import SIZES, grave_faults
from tests.support.catalogues import fake
from tests.support.fleet import Fleet
from tests.support.stack import eventually, own_redis

Shot = Callable[..., None]
Enter = Callable[..., Any]

GPU = json.dumps([{"name": "24 GB", "vram_mb": 24576}])
QUICK = {"CORTEX_AGENT__STOP_GRACE_S": "1", "CORTEX_AGENT__DRAIN_GRACE_S": "20", "CORTEX_AGENT__DEVICES": GPU}
OTHER_SITE = """<form method="post" action="{url}/admin/functions/org%2Fkept/cool?now=1"><button>Win</button></form>
<script>fetch("{url}/admin/functions/org%2Fkept/cool?now=1", {{method: "POST", credentials: "include",
mode: "no-cors"}}).finally(() => document.forms[0].submit())</script>"""


class Machines(Fleet):
    """Three hosts with a GPU each, and a key to act and one to look."""

    keys: dict[str, str]

    def instance(self, function: str) -> Any:
        """A function's only instance, as its host's record says; None when there is none."""
        matches = [i for h in self.records().values() for i in h.instances if i.function == function]
        return matches[0] if len(matches) == 1 else None

    def place(self, function: str) -> str:
        """The host of a function's only ready instance."""
        matches = [(h.name, i.state) for h in self.records().values() for i in h.instances if i.function == function]
        return matches[0][0] if len(matches) == 1 and matches[0][1] is State.READY else ""

    def actions(self, **about: str) -> list[str]:
        """Return what operators requested, newest first. A decision takes a moment to reach the record."""
        return [str(r["why"]) for r in self.decisions(what="action", **about)]

    def decisions(self, **wanted: str) -> list[dict[str, Any]]:
        """Return decisions, newest first."""
        answer: list[dict[str, Any]] = self.http.get("/admin/decisions", params=wanted).json()["decisions"]
        return answer


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("machines")
    catalogue = "\n".join(
        [
            fake("org/moves", "--load-s", "1", vram_mb=6000),
            fake("org/kept", "--load-s", "0.5", vram_mb=5000),
            fake("org/old", "--load-s", "0.5", vram_mb=16000),
            fake("org/new", "--load-s", "0.5", vram_mb=20000, labels=["roomy"]),
            fake("org/talks", "--tps", "10", "--tokens", "600", vram_mb=1000),
            fake(
                "org/dies", "--crash-on-load", "3", "--crash-message", "Error: <b onclick=alert(1)>no</b>", vram_mb=500
            ),
        ]
    )
    agents = {"left": QUICK, "right": QUICK, "third": QUICK | {"CORTEX_AGENT__LABELS": '["roomy"]'}}
    with own_redis(folder) as url, Machines(folder, url, catalogue, agents) as running:
        answer = running.http.post("/admin/keys", json={"name": "ops", "scope": "admin"}).json()["key"]
        running.http.headers["authorization"] = f"Bearer {answer}"
        look = running.http.post("/admin/keys", json={"name": "look", "scope": "status"}).json()["key"]
        running.keys = {"admin": answer, "status": look}
        yield running


@pytest.fixture
def enter(browser: Any, machines: Machines) -> Iterator[Enter]:
    """Open the page without a key, and log in with one."""
    opened, texts = [], []

    def entered(key: str, size: str = "laptop", theme: str = "light") -> Any:
        width, height = SIZES[size]
        view = {"width": width, "height": height}
        context = browser.new_context(viewport=view, color_scheme=theme, reduced_motion="reduce")
        opened.append(context)
        page = context.new_page()
        page.on("console", lambda message: texts.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: texts.append(f"error: {error}"))
        page.set_default_timeout(20_000)
        page.goto(f"{machines.url}/status")
        page.wait_for_url(f"{machines.url}/status/login")
        page.get_by_label("API key").fill(machines.keys[key])
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(f"{machines.url}/status")
        page.wait_for_selector('#link[data-state="live"]')
        return page

    yield entered
    for context in opened:
        context.close()
    assert not [s for s in texts if "Failed to load resource" not in s]  # what is refused, the browser says by itself


def do(page: Any, verb: str) -> str:
    """Press an action's button in the open details, read its plan, and act."""
    panel = page.locator("#panel")
    panel.get_by_role("button", name=f"{verb}…").click()
    panel.get_by_role("heading", name=f"{verb} ").wait_for()
    plan = str(panel.inner_text())
    panel.get_by_role("button", name=verb, exact=True).click()
    return plan


def open_function(page: Any, name: str) -> None:
    page.locator(f'#functions > tr[data-id="{name}"] button.link').click()
    page.locator("#panel-title", has_text=name).wait_for()


def open_host(page: Any, name: str) -> None:
    page.locator("#hosts").get_by_role("button", name=name, exact=True).click()
    page.locator("#panel-title", has_text=name).wait_for()


def test_a_function_is_warmed_pinned_unpinned_and_cooled(machines: Machines, enter: Enter, shot: Shot) -> None:
    page = enter("admin")

    open_function(page, "org/kept")
    warming = do(page, "Warm")
    eventually(lambda: machines.place("org/kept"), what="the instance in its host's record")
    page.wait_for_selector('#functions > tr[data-id="org/kept"][data-tone="idle"]')
    assert machines.chat("org/kept").is_success  # who has served may be evicted, after a while
    open_function(page, "org/kept")
    pinning = do(page, "Pin")
    eventually(lambda: machines.instance("org/kept").pinned, what="the pin in the host's record")
    page.locator('#functions > tr[data-id="org/kept"] .pin').wait_for()
    shot(page, "pinned-laptop-light")
    page.locator("#departures", has_text="stays: pinned").wait_for()
    assert page.locator("#departures ol").count() == 0
    open_function(page, "org/kept")
    unpinning = do(page, "Unpin")
    eventually(lambda: not machines.instance("org/kept").pinned, what="no pin in the host's record")
    page.locator("#departures ol", has_text="org/kept").wait_for()
    open_function(page, "org/kept")
    cooling = do(page, "Cool")
    eventually(lambda: machines.instance("org/kept") is None, what="the instance to be gone from the record")

    assert "It would start on" in warming
    assert "not be evicted" in pinning
    assert "could be evicted, and reaped after" in unpinning
    assert "1 instance would be drained" in cooling
    acts = ["cool", "unpin", "pin", "warm"]
    eventually(lambda: machines.actions(function="org/kept") == acts, what="a decision on each")


def test_a_drain_moves_instances_and_uncordon_reopens_the_host(machines: Machines, enter: Enter, shot: Shot) -> None:
    machines.chat("org/moves")
    before = machines.place("org/moves")
    page = enter("admin")

    open_host(page, before)
    plan = do(page, "Drain")
    page.locator("#hosts .tag", has_text="cordoned").wait_for()
    eventually(lambda: machines.place("org/moves") not in ("", before), what="it to be on another host's record")
    eventually(lambda: not machines.records()[before].instances, what="the drained host to be empty")
    page.get_by_text(f"Drain {before}: done").wait_for()
    host = page.locator("#hosts > li", has=page.get_by_role("button", name=before, exact=True))
    host.get_by_text("0 instances").wait_for()
    shot(page, "drained-laptop-light")
    open_host(page, before)
    do(page, "Uncordon")
    page.locator("#hosts .tag", has_text="cordoned").wait_for(state="detached")

    assert f"org/moves: moves to {machines.place('org/moves')}" in plan
    eventually(lambda: machines.actions(host=before) == ["uncordon", "drain"], what="a decision on each")
    assert not any(h["cordoned"] for h in machines.http.get("/admin/hosts").json()["hosts"])
    assert machines.chat("org/moves").is_success


def test_a_warm_shows_its_victim_which_then_leaves(machines: Machines, enter: Enter, shot: Shot) -> None:
    third = "third"
    machines.http.post("/admin/hosts/left/cordon")
    machines.http.post("/admin/hosts/right/cordon")
    machines.chat("org/kept")
    machines.http.post("/admin/hosts/left/uncordon")
    machines.http.post("/admin/hosts/right/uncordon")
    eventually(lambda: machines.place("org/kept") == third, what="the instance in its host's record")
    page = enter("admin")

    def planned() -> str:
        page.locator('#functions > tr[data-id="org/new"]').get_by_role("button", name="Warm").click()
        page.get_by_role("heading", name="Warm org/new").wait_for()
        return str(page.locator("#panel").inner_text())

    def possible() -> str:
        # The agent names the victim, and its rank is the router's, which may know of the last use later.
        if "least recently used" in (output := planned()):
            return output
        page.locator("#panel .panel-close button").click()
        return ""

    plan = eventually(possible, within_s=45, what="no instance to be newly loaded")
    shot(page, "evicts-laptop-light")
    page.locator("#panel").get_by_role("button", name="Warm", exact=True).click()
    eventually(lambda: machines.place("org/new") == third, what="the instance in its host's record")

    assert "org/kept, idle for" in plan
    assert "org/kept: " not in plan  # among those that stay
    assert machines.instance("org/kept") is None
    evicted = eventually(lambda: machines.decisions(function="org/kept", what="evicted"), what="the decision")
    assert evicted[0]["why"] == "for org/new"
    page.locator("#decisions", has_text="evicted").wait_for()


def test_cooling_at_once_warns_and_cuts_requests_in_flight(machines: Machines, enter: Enter) -> None:
    answers = []
    talking = threading.Thread(target=lambda: answers.append(machines.chat("org/talks", stream=True).text), daemon=True)
    talking.start()
    page = enter("admin")
    page.wait_for_selector('#functions > tr[data-id="org/talks"][data-tone="busy"]')

    open_function(page, "org/talks")
    panel = page.locator("#panel")
    panel.get_by_role("button", name="Cool…").click()
    panel.get_by_label("At once: cut 1 request").check()
    panel.get_by_role("button", name="Cool", exact=True).click()

    eventually(lambda: machines.instance("org/talks") is None, what="the instance to be gone from the record")
    talking.join(10)
    assert not talking.is_alive()
    assert '"error"' in answers[0]
    assert "[DONE]" not in answers[0]


@pytest.mark.parametrize(("size", "theme"), [("laptop", "light"), ("phone", "dark")])
def test_a_workers_log_is_read_and_searched_from_its_error(
    machines: Machines, enter: Enter, shot: Shot, size: str, theme: str
) -> None:
    machines.chat("org/dies")
    page = enter("admin", size, theme)
    panel = page.locator("#panel")

    page.locator("#troubles").get_by_role("button", name="Log of org/dies").first.click()
    page.locator("#panel-title", has_text="Log of org/dies").wait_for()
    shown = panel.locator("pre.log").inner_text()
    shot(page, f"log-{size}-{theme}")
    assert not grave_faults(page)
    panel.get_by_label("Lines with").fill("error: <B")
    page.keyboard.press("Enter")
    panel.get_by_text("No line matches.").wait_for()
    panel.get_by_label("Lines with").fill("error: <b")
    page.keyboard.press("Enter")
    panel.get_by_text("1 line with").wait_for()

    assert "Error: <b onclick=alert(1)>no</b>" in shown
    assert panel.locator("pre.log b").count() == 0
    assert panel.locator("pre.log").inner_text() == "Error: <b onclick=alert(1)>no</b>\n"
    assert page.evaluate("document.activeElement.id") == "log-grep"
    panel.get_by_role("button", name="Back").click()
    assert not panel.is_visible()


def test_a_status_key_sees_plans_and_cannot_act(machines: Machines, enter: Enter) -> None:
    machines.chat("org/dies")
    page = enter("status")
    panel = page.locator("#panel")

    assert not page.locator("#troubles").get_by_role("button", name="Log of").first.is_visible()
    open_function(page, "org/old")
    panel.get_by_role("button", name="Warm…").click()
    panel.get_by_role("heading", name="Warm org/old").wait_for()

    assert "Changes need an admin key" in panel.inner_text()
    assert panel.get_by_role("button", name="Warm", exact=True).is_disabled()
    forced = page.evaluate("fetch('/admin/functions/org%2Fold/warm', {method: 'POST'}).then((a) => a.status)")
    log = page.evaluate("fetch('/status/log?function=org%2Fdies').then((a) => a.status)")
    assert (forced, log) == (403, 403)
    assert machines.instance("org/old") is None


def test_a_wrong_key_is_rejected_and_a_logout_ends_the_session(machines: Machines, enter: Enter) -> None:
    page = enter("admin")

    page.get_by_role("button", name="Log out").click()
    page.wait_for_url(f"{machines.url}/status/login")
    page.get_by_label("API key").fill("ctx_wrong")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("alert").get_by_text("This key is unknown").wait_for()
    page.goto(f"{machines.url}/status")

    assert page.url == f"{machines.url}/status/login"
    assert page.context.cookies() == []


def test_a_page_of_another_site_cannot_use_the_login(machines: Machines, enter: Enter) -> None:
    machines.chat("org/kept")
    before = machines.decisions(what="action")
    page = enter("admin")
    other = page.context.new_page()
    answers: list[int] = []
    other.on("response", lambda a: answers.append(a.status) if "/admin/" in a.url else None)
    other.route(
        "http://evil.test/", lambda r: r.fulfill(body=OTHER_SITE.format(url=machines.url), content_type="text/html")
    )

    other.goto("http://evil.test/")
    other.wait_for_url(f"{machines.url}/admin/**")

    assert answers
    assert set(answers) <= {401, 403}
    assert machines.place("org/kept")
    assert machines.decisions(what="action") == before
