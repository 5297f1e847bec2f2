"""Files of cortex are readable by its user only, with any umask."""

import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortex.cli.checks.machine import check_folders
from tests.support.catalogues import fake
from tests.support.stack import Stack

pytestmark = pytest.mark.long

SHARES = """
import os, sys
from cortex.platform.settings import Agent
from cortex.platform.workers.worker_user import share_cache
os.umask(0o077)
share_cache(Agent(state_dir="state", log_dir="logs", worker_user=sys.argv[1]))
os.makedirs("cache/weights")
open("cache/weights/model.gguf", "w").close()
"""


def modes_below(top: Path) -> Iterator[tuple[Path, int]]:
    """Return a folder and what is in it, with the permissions of others. The agent renames its drafts meanwhile."""
    for path in (top, *top.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            mode = path.lstat().st_mode
            if not stat.S_ISLNK(mode):
                yield path, mode & 0o077


def test_all_files_of_a_running_cortex_are_private(tmp_path: Path) -> None:
    stack = Stack(tmp_path, fake("one/model"))  # with a Redis of its own
    try:
        stack.chat("one/model").raise_for_status()
        state, cache = (tmp_path / name / "cortex" for name in ("state", "cache"))
        modes = {str(p.relative_to(tmp_path)): mode for top in (state, cache) for p, mode in modes_below(top)}
    finally:
        stack.end()

    assert {"state/cortex/redis/appendonlydir", "state/cortex/redis/appendonly.aof"} & modes.keys()
    assert "state/cortex/log/router.log" in modes
    assert {name for name, mode in modes.items() if mode} == set()
    assert [f.level for f in check_folders(state)] == ["ok"]


@pytest.mark.parametrize(("user", "weights", "private"), [("", 0o600, None), ("nobody", 0o644, 0o700)])
def test_with_a_worker_user_weights_are_readable_and_logs_private(
    tmp_path: Path, user: str, weights: int, private: int | None
) -> None:
    subprocess.run([sys.executable, "-c", SHARES, user], cwd=tmp_path, check=True, timeout=60, env=dict(os.environ))

    assert (tmp_path / "cache/weights/model.gguf").stat().st_mode & 0o777 == weights
    for name in ("state", "logs"):
        folder = tmp_path / name
        assert (folder.stat().st_mode & 0o777 if folder.exists() else None) == private
