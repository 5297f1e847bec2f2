"""Keeps one launcher parked for this host's build of vLLM, and hands it a start.

A parked launcher belongs to one agent: it exits when the agent's end of its socket closes, and the next agent parks
its own. After the hand-over it is an ordinary worker with a marker.
"""

import asyncio
import contextlib
import json
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
import structlog

from cortex.platform import untrusted
from cortex.platform.launcher.eligibility import ineligibility
from cortex.platform.process import environment, termination
from cortex.platform.process.environment import MARKER, OWNER
from cortex.platform.process.process_id import boot_id, started_at
from cortex.platform.record import ProcessId

log = structlog.get_logger()

LAUNCHER_SCRIPT = Path(__file__).with_name("process.py")
NAME_PADDING = 96
"""Padding for an instance's name that is longer than the launcher's marker, in characters."""
IMPORT_S = 600.0
"""Time limit for the imports, which run at low priority and maybe from a cold disk."""
LOW_PRIORITY = 10
"""Nice value during imports, a tenth of a normal share. A lower one would never finish on a busy host."""
HAND_OVER_S = 2.0
LONGEST_LINE = 64 * 1024
QUIET_S = 0.5
FIRST_PAUSE_S, MOST_PAUSE_S = 2.0, 300.0
LEAST_FREE_MB = 3072
"""Minimum free RAM for parking a launcher, which takes about 1 GB."""


class LauncherPool:
    """One agent's launcher. Without a command it does nothing."""

    def __init__(
        self,
        command: Sequence[str] | None,
        *,
        base_env: Mapping[str, str],
        owner: str,
        log_path: Path,
        busy: Callable[[], bool],
        on_state: Callable[[str], None],
    ) -> None:
        """`command` runs vLLM and `base_env` is its environment; `busy` returns whether a start is in progress;
        `on_state` receives each new state."""
        self._command = command
        self._owner, self._log_path, self._busy, self._on_state = owner, log_path, busy, on_state
        self._env = environment.worker_environment(os.environ, {**base_env, OWNER: owner})
        self._child: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._ready = False
        self._used = asyncio.Event()
        self.state = ""

    async def keep(self) -> None:
        """Keep one launcher parked until cancelled. Parks a new one when the host is idle."""
        if self._command is None:
            return
        pause = FIRST_PAUSE_S
        while True:
            await self._wait_until_idle()
            self._used.clear()
            error = await self._park()
            if not error:
                pause = FIRST_PAUSE_S
                error = await self._wait_until_used()
                if not error:
                    continue
            log.warning("launcher_failed", why=error, log=str(self._log_path))
            self._set_state(f"failed: {error}")
            await asyncio.sleep(pause)
            pause = min(pause * 2, MOST_PAUSE_S)

    def hand_over(
        self, argv: Sequence[str], env: Mapping[str, str], log_path: Path, group: Path | None
    ) -> subprocess.Popen[bytes] | str:
        """Hand a start to the parked launcher, which becomes the worker. Return its process, or the reason against."""
        if self._command is None:
            return "there is no launcher"
        if reason := ineligibility(argv, env, self._env):
            return reason
        if not self._ready or self._child is None or self._line is None:
            return f"the launcher was {self.state or 'missing'}"
        child, line = self._child, self._line
        self._child, self._line, self._ready = None, None, False
        self._used.set()
        job = {
            "argv": ["vllm", *argv[len(self._command) - (self._command[-1] == "serve") :]],
            "env": dict(env),
            "log": str(log_path),
            "group": str(group) if group else "",
        }
        try:
            with contextlib.suppress(OSError):  # without the right to raise it, it was never lowered
                os.setpriority(os.PRIO_PGRP, child.pid, 0)
            line.settimeout(HAND_OVER_S)
            line.sendall(json.dumps(job).encode() + b"\n")
        except OSError as error:
            _kill(child)
            return f"the launcher rejected the start: {error}"
        finally:
            line.close()
        self._set_state("handed over")
        return child

    async def close(self) -> None:
        """End the parked launcher."""
        self._ready = False
        if self._line is not None:
            self._line.close()
        if self._child is not None:
            await asyncio.to_thread(_kill, self._child)
        self._child = self._line = None

    # Parking.

    async def _wait_until_idle(self) -> None:
        """Wait until no start is in progress, which the imports would slow down, and enough RAM is free."""
        while True:
            free_mb = psutil.virtual_memory().available // (1024 * 1024)
            if self._busy():
                self._set_state("waiting for a start to end")
            elif free_mb < LEAST_FREE_MB:
                self._set_state(f"not parked: {free_mb} MiB of RAM are free")
            else:
                return
            await asyncio.sleep(QUIET_S)

    async def _park(self) -> str:
        """Park a launcher. Return the error, or "" on success."""
        assert self._command is not None
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._set_state("importing")
        try:
            with theirs:
                self._child, self._line = self._start(theirs), ours
            async with asyncio.timeout(IMPORT_S):
                greeting = await self._line_read(ours)
        except (OSError, TimeoutError) as error:
            await self.close()
            return str(error) or "it took too long"
        if not greeting:
            exit_text = termination.describe_exit(await asyncio.to_thread(self._child.wait))
            await self.close()
            return f"it {exit_text} while importing"
        try:
            facts = {untrusted.name(k, 40): untrusted.line(str(v), 200) for k, v in json.loads(greeting).items()}
        except (ValueError, AttributeError, RecursionError):
            await self.close()
            return "its greeting is not valid JSON"
        self._ready = True
        log.info("launcher_parked", pid=self._child.pid, facts=facts)
        self._set_state("parked")
        return ""

    def _start(self, line: socket.socket) -> subprocess.Popen[bytes]:
        assert self._command is not None
        if self._command[-1] == "serve":
            script = self._command[0]
            python, entry = str(Path(script).with_name("python")), script
        else:
            python, entry = self._command[0], self._command[-1]
        marker = f"parked-{secrets.token_hex(8)}"
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("wb") as output:
            child = subprocess.Popen(
                [python, str(LAUNCHER_SCRIPT), entry],
                # Adjacent and in this order: the launcher writes its instance's name over both.
                env={**self._env, MARKER: marker, "CORTEX_PAD": "-" * NAME_PADDING},
                stdin=line.fileno(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if _can_restore_priority():
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, child.pid, LOW_PRIORITY)
        return child

    async def _line_read(self, line: socket.socket) -> bytes:
        """Read a line; b"" when the other end closes first. Raises OSError for a line that is too long."""
        loop, received = asyncio.get_running_loop(), b""
        while not received.endswith(b"\n"):
            chunk = await loop.sock_recv(line, 4096)
            if not chunk:
                return b""
            if len(received) > LONGEST_LINE:
                raise OSError("it wrote an endless line")
            received += chunk
        return received

    async def _wait_until_used(self) -> str:
        """Wait until the launcher is used or exits. Return its exit, or "" when it was used."""
        assert self._child is not None
        child = self._child
        exited = asyncio.ensure_future(
            termination.wait_for_exit(ProcessId(boot_id(), child.pid, started_at(child.pid)))
        )
        used = asyncio.ensure_future(self._used.wait())
        try:
            await asyncio.wait((exited, used), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (exited, used):
                task.cancel()
            await asyncio.gather(exited, used, return_exceptions=True)
        if self._used.is_set():
            return ""
        exit_text = termination.describe_exit(await asyncio.to_thread(child.wait))
        await self.close()
        return f"it {exit_text} while it was parked"

    def _set_state(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self._on_state(state)


def _can_restore_priority() -> bool:
    """Return whether this process may restore a lowered priority; else starts would stay slow."""
    if sys.platform != "linux":
        return False
    return os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill a launcher and its process group."""
    termination.signal_group(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(5)
