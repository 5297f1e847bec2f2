"""Keeps a batch worker running while there is an open batch: a thread in the first process of a router.

Without an open batch there is no batch worker, and a folder that routers share has one. A batch worker that exits while
a batch is open is restarted after a growing pause.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time

import structlog

from cortex.platform.settings import Settings
from cortex.platform.settings_file import encode_env
from cortex.router.batches.folder import Folder

log = structlog.get_logger()

LOOK_S = 0.5
"""Interval of looking for open batches while no batch worker runs."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
"""Pauses between the exit of a batch worker with open batches and the next one's start."""
STOP_S = 5.0
"""From TERM to KILL."""


class BatchWorker:
    """Keeps a batch worker running while there is an open batch. A context manager, for a router's first process."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._folder = settings, Folder.of(settings.gateway)
        self._stops = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._supervise, name="batches", daemon=True)

    def __enter__(self) -> "BatchWorker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stops.set()
        self._thread.join(STOP_S + 1)

    def _supervise(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stops.wait(LOOK_S):
            try:
                if not self._folder.open_batches() or self._folder.is_locked():
                    continue
                started = time.monotonic()
                code = self._run()
            except OSError as error:
                log.error("batches_not_started", folder=str(self._folder.path), why=str(error))
                code, started = 1, time.monotonic()
            pause_s = (
                FIRST_PAUSE_S if time.monotonic() - started > LONGEST_PAUSE_S else min(2 * pause_s, LONGEST_PAUSE_S)
            )
            if code and self._stops.wait(pause_s):
                return

    def _run(self) -> int:
        """Run a batch worker until it exits; return its exit code."""
        command = [sys.executable, "-m", "cortex.router.batches"]
        watched = [sys.executable, "-m", "cortex.platform.process.parent_death", str(os.getpid())]
        environment = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"} | encode_env(self._settings)
        process = subprocess.Popen([*watched, *command], env=environment, stdin=subprocess.DEVNULL)
        while process.poll() is None:
            if self._stops.wait(0.1):
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_S)
                process.kill()
                process.wait()
        return process.returncode
