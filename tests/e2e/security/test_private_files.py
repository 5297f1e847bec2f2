"""Files of cortex are readable by its user only, with any umask."""

import os
import subprocess
import sys
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


def test_all_files_of_a_running_cortex_are_private(tmp_path: Path) -> None:
    stack = Stack(tmp_path, fake("one/model"))  # with a Redis of its own
    try:
        stack.chat("one/model").raise_for_status()
        state, cache = (tmp_path / name / "cortex" for name in ("state", "cache"))
        readings = [p for top in (state, cache) if top.exists() for p in (top, *top.rglob("*")) if not p.is_symlink()]
        modes = {str(p.relative_to(tmp_path)): p.lstat().st_mode & 0o077 for p in readings}
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
