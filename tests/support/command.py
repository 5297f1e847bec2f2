"""A `cortex` command in this process: starting one takes half a second of CPU time.

`tests/cli` and `tests/e2e/test_cli.py` also run commands as processes.
"""

import os
import subprocess
from collections.abc import Mapping

from click.testing import CliRunner

from cortex.cli.exits import FAILED, Failed
from cortex.cli.main import cli
from cortex.platform.settings import SettingsError


def run(env: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command with this environment to its end. Call it from the main thread: it takes the standard streams."""
    others = {name: None for name in os.environ if name not in env}
    umask = os.umask(0o077)  # as `main()` does
    try:
        done = CliRunner(env={**others, **env}).invoke(cli, arguments, prog_name="cortex")
    finally:
        os.umask(umask)
    code, error = done.exit_code, done.exception
    stderr = done.stderr
    if isinstance(error, Failed | SettingsError):
        code, stderr = getattr(error, "exit_code", FAILED), f"{stderr}cortex: {error}\n"
    elif error is not None and not isinstance(error, SystemExit):
        raise error
    return subprocess.CompletedProcess(["cortex", *arguments], code, done.stdout, stderr)
