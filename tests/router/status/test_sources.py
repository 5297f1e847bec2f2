"""What others say, as the page shows it."""

from cortex.platform.agent_messages import Fetching
from cortex.platform.decisions import DecisionRecord
from cortex.router.status.sources import decision, job

GIB = 2**30


def test_a_download_says_how_far_it_is_and_when_it_is_over() -> None:
    going = Fetching(
        id="j", source="org/repo", state="fetching", done=GIB, total=4 * GIB, rate=GIB / 10, functions=("org/model",)
    )

    shown = job("host-a", going, 1000.0)

    assert (shown.share, shown.ends) == (0.25, 1030.0)
    assert shown.said == "org/model · 1.0 GiB of 4.0 GiB, 102 MiB/s"


def test_a_download_that_failed_says_why_and_has_no_bar() -> None:
    failed = Fetching(id="j", source="org/repo", state="failed", total=4 * GIB, why="the disk is full")

    shown = job("host-a", failed, 1000.0)

    assert (shown.share, shown.ends) == (None, None)
    assert shown.said == "0 MiB of 4.0 GiB · the disk is full"


def test_a_decision_keeps_who_made_it_and_why() -> None:
    shown = decision(DecisionRecord(at=5.0, by="operator", what="asked", function="org/model", why="pin"))

    assert (shown.what, shown.by, shown.why) == ("asked", "operator", "pin")
