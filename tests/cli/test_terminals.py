"""Terminals that are not UTF-8, and homes that cannot be written: commands answer with words, not with a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CORTEX = [sys.executable, "-m", "cortex.cli"]


def run(*args: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*CORTEX, *args], env={**os.environ, **env}, capture_output=True, check=False, timeout=60)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_output_that_an_encoding_lacks_is_shown_by_similar_characters_or_codes(tmp_path: Path, encoding: str) -> None:
    catalogue = tmp_path / "models.toml"
    catalogue.write_text('[[models]]\nid = "日本"\nengine = "fake"\nfoo = 1\n', encoding="utf-8")

    help_ = run("--help", PYTHONIOENCODING=encoding)
    check = run("check", str(catalogue), PYTHONIOENCODING=encoding)

    assert help_.returncode == 0
    assert b"Exit codes" in help_.stdout
    assert check.returncode == 1
    assert b": unknown key 'foo'" in check.stderr
    assert encoding == "ascii" or b"\\u65e5\\u672c:" in check.stderr  # click writes UTF-8 where it finds ASCII
    assert b"Traceback" not in help_.stderr + check.stderr


def test_a_home_that_cannot_be_written_is_named_with_what_to_set(tmp_path: Path) -> None:
    catalogue = tmp_path / "models.toml"
    catalogue.write_text('[[models]]\nid = "e"\nengine = "fake"\n', encoding="utf-8")
    env = {
        "HOME": "/dev/null",
        "XDG_STATE_HOME": "",
        "XDG_CACHE_HOME": "",
        "XDG_RUNTIME_DIR": "",
        "XDG_CONFIG_HOME": "",
    }

    up = run("up", "--models", str(catalogue), **env)

    assert up.returncode == 1
    assert b"cannot write" in up.stderr
    assert b"XDG_STATE_HOME" in up.stderr
    assert b"Traceback" not in up.stderr
