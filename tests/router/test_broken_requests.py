"""An internal error is reported to the client and in the log, without the request's content."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.broken import KEY, WORDS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("form", ["json", pytest.param("console", marks=pytest.mark.long)])
def test_an_internal_error_logs_its_location_without_the_requests_content(form: str) -> None:
    argv = [sys.executable, "-W", "ignore", "-m", "tests.support.broken", form]

    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)

    assert [line.split()[0] for line in done.stdout.splitlines()] == ["500"] * 4
    assert done.stderr.count("request_failed") == 4
    assert "Exception in ASGI application" in done.stderr
    for text in ("RuntimeError", "after KeyError", "broken.py:", "in breaks"):
        assert done.stderr.count(text) >= 5
    assert not [secret for secret in (KEY, WORDS, "cannot handle") if secret in done.stdout + done.stderr]
