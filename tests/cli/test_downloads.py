"""Downloads on a terminal: progress bars and outcomes."""

import io
import re
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
from rich.console import Console

from cortex.cli import downloads
from cortex.cli.client import Router
from cortex.cli.exits import Failed
from cortex.router.api_types import DownloadView, JobsAnswer


def a_download(**rest: Any) -> DownloadView:
    values: dict[str, Any] = {
        "id": "job-1",
        "source": "org/m:Q4_K_M",
        "functions": ("w/m",),
        "state": "fetching",
        "active": True,
    }
    return DownloadView(host="a", **values | rest)


class Listing:
    """A router that says one thing after another of its downloads, and the last again and again."""

    def __init__(self, *readings: list[DownloadView]) -> None:
        self._readings, self.reads = list(readings), 0

    def jobs(self, host: str) -> JobsAnswer:
        self.reads += 1
        downloads = self._readings.pop(0) if len(self._readings) > 1 else self._readings[0]
        return JobsAnswer(jobs=tuple(downloads), away={})

    def as_router(self) -> Router:
        return cast(Router, self)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """A terminal, on which time does not pass."""
    out = io.StringIO()
    monkeypatch.setattr(downloads, "console", lambda: Console(file=out, force_terminal=True, width=100))
    monkeypatch.setattr(downloads, "POLL_S", 0.0)
    yield out


DONE = a_download(state="done", done=4 << 20, total=4 << 20, active=False)


def test_a_download_shows_its_progress_and_remaining_time(terminal: io.StringIO) -> None:
    half = a_download(done=2 << 20, total=4 << 20, rate=float(1 << 20), ends_at=time.time() + 90)
    listing = Listing([a_download()], [half], [DONE])

    assert downloads.wait_for(listing.as_router(), "a", "job-1") == DONE

    output = terminal.getvalue()
    assert "org/m:Q4_K_M on a" in output
    assert "━" in output
    assert re.search(r"2 MiB of 4 MiB, 1 MiB/s, 1m(30|2\d)s left", output)
    assert listing.reads == 3


def test_only_active_downloads_are_followed_until_each_ends(terminal: io.StringIO) -> None:
    old = a_download(id="old", source="org/old", state="failed", active=False)
    listing = Listing([old, a_download()], [old, DONE])

    downloads.follow(listing.as_router(), "")

    assert listing.reads == 2
    assert "org/old" not in terminal.getvalue()


@pytest.mark.parametrize(
    ("ends", "output"),
    [
        (
            [a_download(state="failed", why="there is no room", active=False)],
            "org/m:Q4_K_M was not fetched on a: there is",
        ),
        ([a_download(state="stopped", active=False)], "org/m:Q4_K_M was not fetched on a: it was cancelled"),
        ([], "org/m:Q4_K_M was not fetched on a: its job no longer exists"),
    ],
)
def test_a_download_that_is_not_done_fails_with_the_reason(
    terminal: io.StringIO, ends: list[DownloadView], output: str
) -> None:
    with pytest.raises(Failed, match=output):
        downloads.wait_for(Listing([a_download()], ends).as_router(), "a", "job-1")
