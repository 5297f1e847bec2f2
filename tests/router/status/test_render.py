"""Values laid out: everything escaped, nothing inline, and no template that only some state breaks."""

import re
from html.parser import HTMLParser

import pytest

from cortex.functions.lifecycle import State
from cortex.platform.record import Failure
from cortex.router.status import plans
from cortex.router.status.assets import PREFIX, asset, url
from cortex.router.status.functions import details
from cortex.router.status.model import Decision, Flow, Job, Log, Series
from cortex.router.status.page import picture
from cortex.router.status.render import page, render
from cortex.router.status.snapshot import FleetSnapshot, Index, Rates
from tests.router.status.knowns import NOW, known
from tests.support.factories import a_function, a_host, an_instance

HOSTILE = '<script>alert("x")</script>'
MINUTES = Series(values=(1.0, None, 3.0), step_s=60.0, ends=NOW)


class Reader(HTMLParser):
    """Gathers what a policy without inline code forbids, and ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        self.inline += [v for v in given.values() if v and v.strip().lower().startswith("javascript:")]


def everything(name: str = "org/model") -> FleetSnapshot:
    """A fleet in which everything is going on at once."""
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
    )
    functions = [a_function(f) for f in (name, "org/busy", "org/coming", "org/leaving", "org/measured", "org/broken")]
    return known(
        *functions,
        hosts=(host,),
        in_flight={"b": 2},
        waiting={"org/coming": 5, "org/broken": 1},
        aliases={name + "-alias": name},
        cordoned=("host-a", "host-z"),
        flow=Flow(
            rate_per_min=4.2, errors_per_min=0.5, first_token_ms=80.0, requests=MINUTES, duration=(MINUTES, MINUTES)
        ),
        rates={"org/busy": Rates(first_token_ms=90.0, tokens_per_s=41.0)},
        decisions=[Decision(at=NOW - 1, what="evicted", function=name, host="host-a", instance="x", why=name)],
        jobs=[Job(id="j", host="host-a", what=name, state="started", share=0.3, said="3 of 10 GiB", at=NOW)],
        problem=name,
    )


@pytest.mark.parametrize("told", [known(), everything(), everything(HOSTILE)], ids=["nothing", "everything", "hostile"])
def test_the_page_has_no_inline_code_and_no_element_twice(told: FleetSnapshot) -> None:
    text = page(picture(told), may_act=True)
    reader = Reader(text)

    assert not reader.inline
    assert len(reader.ids) == len(set(reader.ids))
    assert "<script>alert" not in text


@pytest.mark.parametrize("name", ["org/model", HOSTILE])
def test_details_and_plans_are_laid_out_without_inline_code(name: str) -> None:
    told = everything(name)
    index = Index(told.fleet)
    function = told.catalogue.functions[name]
    made = [
        render("function.html", NOW, it=details(f, told, index), may_act=False)
        for f in told.catalogue.functions.values()
    ]
    made += [
        render("plan.html", NOW, it=plan, may_act=may)
        for may in (True, False)
        for plan in (
            plans.cool(function, told, index),
            plans.warm(function, None, {name: name}, (), NOW),
            plans.drain(told.fleet.hosts["host-a"], told, index),
            plans.pin(function, index),
        )
    ]

    assert all(not Reader(text).inline and "<script>alert" not in text for text in made)


def test_what_a_worker_wrote_is_shown_as_text_and_nothing_else() -> None:
    shown = render(
        "log.html",
        host="",
        it=Log(function=HOSTILE, host=HOSTILE, instance="", run="current", grep=HOSTILE, text=HOSTILE),
    )

    assert "<script>" not in shown
    assert not Reader(shown).inline


def test_what_is_not_known_is_not_shown_as_a_number() -> None:
    text = render("figures.html", NOW, it=(picture(known()).figures, Flow()), id="figures", order="")

    assert "–" in text
    assert "None" not in text
    assert "nan" not in text


def test_everything_the_page_asks_for_is_in_the_package() -> None:
    text = page(picture(known()), may_act=True)

    asked = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert asked
    assert all(one.startswith(PREFIX) and asset(one.removeprefix(PREFIX)) for one in asked if one != "/status/login")
    assert not re.search(r"https?://(?!www\.w3\.org)", text)


def test_an_assets_name_changes_with_what_is_in_it() -> None:
    assert re.fullmatch(r"/status/assets/status\.[0-9a-f]{10}\.css", url("status.css"))
    assert asset("status.css") is None
    assert asset("../page.html") is None
