"""Downloads and decisions as the page shows them."""

from cortex.platform.agent_messages import Fetching
from cortex.platform.decisions import DecisionRecord
from cortex.router.status.sources import decision, job

GIB = 2**30


def test_a_download_has_its_progress_and_expected_end() -> None:
    active = Fetching(
        id="j", source="org/repo", state="fetching", done=GIB, total=4 * GIB, rate=GIB / 10, functions=("org/model",)
    )

    shown = job("host-a", active, 1000.0)

    assert (shown.share, shown.ends) == (0.25, 1030.0)
    assert shown.detail == "org/model · 1.0 GiB of 4.0 GiB, 102 MiB/s"


def test_a_failed_download_has_its_reason_and_no_progress() -> None:
    failed = Fetching(id="j", source="org/repo", state="failed", total=4 * GIB, why="the disk is full")

    shown = job("host-a", failed, 1000.0)

    assert (shown.share, shown.ends) == (None, None)
    assert shown.detail == "0 MiB of 4.0 GiB · the disk is full"


def test_a_decision_has_its_author_and_reason() -> None:
    shown = decision(DecisionRecord(at=5.0, by="operator", what="asked", function="org/model", why="pin"))

    assert (shown.what, shown.by, shown.why) == ("asked", "operator", "pin")
