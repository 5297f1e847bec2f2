"""`cortex status --open` opens the page logged in, without exposing the key."""

import stat
import subprocess
from pathlib import Path

import pytest

from tests.e2e.workers import TWO
from tests.support.stack import CORTEX, Stack

pytestmark = pytest.mark.parametrize("stack", [TWO], indirect=True)


def opened(stack: Stack, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a process: which browsers there are is decided once in each."""
    argv = [*CORTEX, "status", "--open"]
    return subprocess.run(argv, env={**stack.env, **env}, capture_output=True, text=True, timeout=60, check=False)


def test_status_prints_the_pages_url_and_opens_it_logged_in(stack: Stack, tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text('#!/bin/sh\nprintf "%s" "$1" > ' + str(tmp_path / "url"))
    browser.chmod(0o755)

    done = opened(stack, BROWSER=f"{browser} %s")

    assert f"{stack.url}/status" in done.stdout
    request = (tmp_path / "url").read_text()
    assert request.startswith("file://")
    assert stack.local_key() not in request + done.stdout + done.stderr
    page = Path(request.removeprefix("file://"))
    assert f"{stack.url}/status/login#key={stack.local_key()}" in page.read_text()
    assert stat.S_IMODE(page.stat().st_mode) == 0o600


def test_without_a_browser_status_prints_the_pages_url(stack: Stack) -> None:
    done = opened(stack, BROWSER="/nonexistent %s", PATH="")

    assert done.returncode == 0
    assert f"{stack.url}/status" in done.stdout
