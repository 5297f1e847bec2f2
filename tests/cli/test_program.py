"""How the program ends when it is interrupted while it imports, and when nobody reads what it prints."""

import os
import signal
import subprocess
import sys
from pathlib import Path

CORTEX = [sys.executable, "-m", "cortex.cli"]


def test_ctrl_c_during_an_import_ends_the_program_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "rich_click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}

    done = subprocess.run([*CORTEX, "status"], env=env, capture_output=True, timeout=30, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_the_help_of_a_group_that_nobody_reads_ends_without_a_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)

    done = subprocess.run([*CORTEX, "gpu"], stdout=writer, stderr=subprocess.PIPE, timeout=30, check=False)
    os.close(writer)

    assert (done.returncode, done.stderr) == (1, b"")
