"""A request that breaks cortex itself: its client and the log are told, and neither is told what was in it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.broken import KEY, WORDS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("form", ["json", "console"])
def test_router_and_agent_say_where_they_broke_and_not_on_what(form: str) -> None:
    argv = [sys.executable, "-W", "ignore", "-m", "tests.support.broken", form]

    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)

    assert [line.split()[0] for line in done.stdout.splitlines()] == ["500"] * 4
    assert done.stderr.count("request_broke") == 4
    assert "Exception in ASGI application" in done.stderr
    for said in ("RuntimeError", "after KeyError", "broken.py:", "in breaks"):
        assert done.stderr.count(said) >= 5
    assert not [secret for secret in (KEY, WORDS, "cannot handle") if secret in done.stdout + done.stderr]
