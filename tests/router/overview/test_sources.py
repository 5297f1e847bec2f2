"""Downloads as a router has them from the agents."""

from cortex.platform.agent_messages import Fetching
from cortex.router.overview.sources import download_views

GIB = 2**30


def test_an_active_download_has_its_progress_and_expected_end() -> None:
    active = Fetching(id="j", source="org/repo", state="fetching", done=GIB, total=4 * GIB, rate=GIB / 10)

    (view,) = download_views("host-a", [active], 1000.0)

    assert (view.host, view.active, view.fraction, view.ends_at) == ("host-a", True, 0.25, 1030.0)


def test_a_download_that_ended_has_no_expected_end() -> None:
    failed = Fetching(id="j", source="org/repo", state="failed", done=GIB, total=4 * GIB, rate=1.0, why="disk full")

    (view,) = download_views("host-a", [failed], 1000.0)

    assert (view.active, view.ends_at, view.why) == (False, None, "disk full")
