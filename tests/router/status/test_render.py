"""Rendering: everything is escaped, nothing is inline, and every template renders in every state."""

import re
from html.parser import HTMLParser

import pytest

from cortex.functions.lifecycle import State
from cortex.platform.decisions import DecisionRecord
from cortex.platform.record import Failure
from cortex.router.api_types import DownloadView
from cortex.router.metrics.traffic import Bucket
from cortex.router.overview import plans
from cortex.router.overview.snapshot import FleetSnapshot, Index
from cortex.router.status.assets import PREFIX, asset, url
from cortex.router.status.functions import details
from cortex.router.status.hosts import details as host_details
from cortex.router.status.model import Flow, Log
from cortex.router.status.page import picture
from cortex.router.status.plans import card
from cortex.router.status.render import page, render
from tests.router.overview.snapshots import NOW, a_snapshot
from tests.support.factories import a_function, a_host, a_saved_context, an_instance

HOSTILE = '<script>alert("x")</script>'
HOUR = [
    Bucket(at=int(NOW) - 60, requests=3, errors=1, durations={30: 3}, first_tokens={10: 3}, tokens_out=90,
           timed_tokens=80, timed_s=2.0),
]  # fmt: skip


class Reader(HTMLParser):
    """Collects ids, and inline code that the policy forbids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.ids += [attributes["id"] or ""] if "id" in attributes else []
        if tag == "style" or (tag == "script" and "src" not in attributes):
            self.inline.append(tag)
        self.inline += [name for name in attributes if name == "style" or name.startswith("on")]
        self.inline += [v for v in attributes.values() if v and v.strip().lower().startswith("javascript:")]


def everything(name: str = "org/model") -> FleetSnapshot:
    """Return a snapshot with every state at once."""
    failure = Failure(
        function="org/broken", revision="", instance="x", reason=name, at=NOW - 3, count=4, retry_at=NOW + 9,
    )  # fmt: skip
    host = a_host(
        an_instance("a", function=name, ready=NOW - 100, phases={"placing": 0.5, "starting": 2.0}, used_mb=900),
        an_instance("b", function="org/busy", pinned=True),
        an_instance("c", function="org/coming", state=State.STARTING, started=NOW - 40, waits_for=("d",)),
        an_instance("d", function="org/leaving", state=State.DRAINING),
        an_instance("e", function="org/measured", state=State.STARTING, progress=0.5, phase="loading", started=NOW),
        failures=(failure,),
        at=NOW - 100,
        problem=name,
        contexts=(a_saved_context(function=name), a_saved_context(id="1" * 16, function=name)),
        contexts_off={"org/busy": name},
    )
    functions = [a_function(f) for f in (name, "org/busy", "org/coming", "org/leaving", "org/measured", "org/broken")]
    return a_snapshot(
        *functions,
        hosts=(host,),
        in_flight={"b": 2},
        waiting={"org/coming": 5, "org/broken": 1},
        aliases={name + "-alias": name},
        cordoned=("host-a", "host-z"),
        hour=HOUR,
        lately={"org/busy": HOUR[0]},
        decisions=[DecisionRecord(at=NOW - 1, what="evicted", function=name, host="host-a", instance="x", why=name)],
        downloads=[DownloadView(id="j", host="host-a", source=name, state="fetching", active=True, fraction=0.3)],
        problem=name,
    )


@pytest.mark.parametrize(
    "snapshot", [a_snapshot(), everything(), everything(HOSTILE)], ids=["nothing", "everything", "hostile"]
)
def test_the_page_has_no_inline_code_and_unique_ids(snapshot: FleetSnapshot) -> None:
    text = page(picture(snapshot), may_act=True)
    reader = Reader(text)

    assert not reader.inline
    assert len(reader.ids) == len(set(reader.ids))
    assert "<script>alert" not in text


@pytest.mark.parametrize("name", ["org/model", HOSTILE])
def test_details_and_plans_have_no_inline_code(name: str) -> None:
    snapshot = everything(name)
    index = Index(snapshot)
    function = snapshot.catalogue.functions[name]
    texts = [
        render("function.html", NOW, it=details(f, snapshot, index), may_act=False)
        for f in snapshot.catalogue.functions.values()
    ]
    texts += [
        render("plan.html", NOW, it=card(plan), may_act=may)
        for may in (True, False)
        for plan in (
            plans.cool(function, snapshot, index),
            plans.warm(function, None, {name: name}, snapshot, index),
            plans.drain(snapshot.fleet.hosts["host-a"], snapshot, index),
            plans.pin(function, snapshot, index),
        )
    ]

    machine = host_details(snapshot.fleet.hosts["host-a"], snapshot, index)
    texts.append(render("machine.html", NOW, it=machine, may_act=False))

    assert all(not Reader(text).inline and "<script>alert" not in text for text in texts)
    assert "2 conversations, 4,000 tokens" in texts[-1]


def test_a_workers_log_is_escaped() -> None:
    shown = render(
        "log.html",
        host="",
        it=Log(function=HOSTILE, host=HOSTILE, instance="", run="current", grep=HOSTILE, text=HOSTILE),
    )

    assert "<script>" not in shown
    assert not Reader(shown).inline


def test_an_unknown_figure_is_a_dash() -> None:
    text = render("figures.html", NOW, it=(picture(a_snapshot()).figures, Flow()), id="figures", order="")

    assert "–" in text
    assert "None" not in text
    assert "nan" not in text


def test_every_asset_of_the_page_is_in_the_package() -> None:
    text = page(picture(a_snapshot()), may_act=True)

    links = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert links
    assets = [link for link in links if link not in ("status/login", "status/usage")]
    assert all(link.startswith(PREFIX) and asset(link.removeprefix(PREFIX)) for link in assets)
    assert not re.search(r"https?://(?!www\.w3\.org)", text)


def test_an_assets_name_has_a_hash_of_its_content() -> None:
    assert re.fullmatch(r"status/assets/status\.[0-9a-f]{10}\.css", url("status.css"))
    assert asset("status.css") is None
    assert asset("../page.html") is None
