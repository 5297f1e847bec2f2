"""Keeps one launcher parked for this host's build of vLLM, and lets it fork each start.

A parked launcher belongs to one agent: it exits when the agent's end of its socket closes, and the next agent parks
its own. What it forks is an ordinary worker with a marker, which outlives both.
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
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
FORK_S = 5.0
"""How long a fork may take. The launcher is idle, but its memory may be swapped out."""
EXIT_CODE_S = 1.0
CLOSED_S = 5.0
"""How long a launcher may run on after its socket closed while it imported: it is exiting."""
KILLED_WITHIN_S = 5.0
LONGEST_LINE = 64 * 1024
QUIET_S = 0.5
BUSY_S = 10.0
"""How long the imports wait for starts in progress, which they would slow down. On a busy host one follows another."""
FIRST_PAUSE_S, MOST_PAUSE_S = 2.0, 300.0
LEAST_FREE_MB = 3072
"""Minimum free RAM for parking a launcher, which takes 1 to 2 GB."""


class ForkedWorker:
    """A worker that a launcher forked: its pid, and its exit code as the launcher reports it."""

    def __init__(self, pid: int, pool: "LauncherPool") -> None:
        self.pid, self._pool = pid, pool

    def wait(self) -> int | None:
        """Return the exit code of a worker that has exited; None when its launcher has exited too."""
        return self._pool.exit_code(self.pid)


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
        on_state: Callable[[str, int], None],
    ) -> None:
        """`command` runs vLLM and `base_env` is its environment; `busy` returns whether a start is in progress;
        `on_state` receives each new state, with the launcher's memory in MiB while it is parked."""
        self._command = command
        self._owner, self._log_path, self._busy, self._on_state = owner, log_path, busy, on_state
        self._env = environment.worker_environment(os.environ, {**base_env, OWNER: owner})
        self._child: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._line_lock = threading.Lock()
        """One order at a time. Orders are sent from threads."""
        self._ready = False
        self.state = ""

    async def keep(self) -> None:
        """Keep one launcher parked until cancelled. Parks a new one when it has exited."""
        if self._command is None:
            return
        pause = FIRST_PAUSE_S
        while True:
            await self._wait_until_idle()
            error = await self._park()
            if not error:
                pause = FIRST_PAUSE_S
                error = await self._wait_for_exit()
            log.warning("launcher_failed", why=error, log=str(self._log_path))
            self._set_state(f"failed: {error}")
            await asyncio.sleep(pause)
            pause = min(pause * 2, MOST_PAUSE_S)

    async def hand_over(
        self, argv: Sequence[str], env: Mapping[str, str], log_path: Path, group: Path | None
    ) -> ForkedWorker | str:
        """Let the parked launcher fork a start. Return the worker, or the reason against.

        The worker runs nothing before it has its job, which is sent after the last await: a start that is cancelled
        leaves no worker.
        """
        if self._command is None:
            return "there is no launcher"
        if reason := ineligibility(argv, env, self._env):
            return reason
        if not self._ready or self._child is None or self._line is None:
            return f"the launcher was {self.state or 'missing'}"
        job = {
            "argv": ["vllm", *argv[len(self._command) - (self._command[-1] == "serve") :]],
            "env": dict(env),
            "log": str(log_path),
            "group": str(group) if group else "",
        }
        launcher = self._child
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(FORK_S)
            try:
                greeting = await asyncio.to_thread(self._fork, ours, theirs, self._line)
                pid = int(greeting["pid"])
                ours.sendall(json.dumps(job).encode() + b"\n")
            except (OSError, ValueError, KeyError, TypeError) as error:
                await asyncio.to_thread(_kill, launcher)  # another one is parked
                return f"the launcher did not fork: {str(error) or type(error).__name__}"
        return ForkedWorker(pid, self)

    def _fork(self, ours: socket.socket, theirs: socket.socket, line: socket.socket) -> dict[str, Any]:
        """Order a fork and return the greeting of the forked process. Raises OSError or ValueError."""
        with self._line_lock:
            line.settimeout(FORK_S)
            socket.send_fds(line, [b'{"start": true}'], [theirs.fileno()])
        theirs.close()
        greeting = _read_line(ours)
        if not greeting:
            raise OSError("it exited")
        answer: dict[str, Any] = json.loads(greeting)
        return answer

    def exit_code(self, pid: int) -> int | None:
        """Return the exit code of a worker that this pool's launcher forked and that has exited."""
        with self._line_lock, contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if self._line is None or not self._ready:
                return None
            self._line.settimeout(EXIT_CODE_S)
            self._line.sendall(json.dumps({"exit_of": pid}).encode())
            code = json.loads(_read_line(self._line))["code"]
            return None if code is None else int(code)
        return None

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
        """Wait until no start is in progress, for BUSY_S at most, and enough RAM is free."""
        loop = asyncio.get_running_loop()
        until = loop.time() + BUSY_S
        while True:
            free_mb = psutil.virtual_memory().available // (1024 * 1024)
            if free_mb < LEAST_FREE_MB:
                self._set_state(f"not parked: {free_mb} MiB of RAM are free")
            elif self._busy() and loop.time() < until:
                self._set_state("waiting for a start to end")
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
            failure = await asyncio.to_thread(_exit_while_importing, self._child)
            await self.close()
            return failure
        try:
            facts = {untrusted.name(k, 40): untrusted.line(str(v), 200) for k, v in json.loads(greeting).items()}
        except (ValueError, AttributeError, RecursionError):
            await self.close()
            return "its greeting is not valid JSON"
        with contextlib.suppress(OSError):  # without the right to raise it, it was never lowered
            os.setpriority(os.PRIO_PROCESS, self._child.pid, 0)
        memory_mb = await asyncio.to_thread(_resident_mb, self._child.pid)
        self._ready = True
        log.info("launcher_parked", pid=self._child.pid, memory_mb=memory_mb, facts=facts)
        self._set_state("parked", memory_mb)
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
        # Emptied, and appended to: a launcher that is still exiting writes to its end, not at its own old position.
        with self._log_path.open("ab") as output:
            output.truncate(0)
            child = subprocess.Popen(
                [python, str(LAUNCHER_SCRIPT), entry],
                # Adjacent and in this order: a forked worker writes its instance's name over both.
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

    async def _wait_for_exit(self) -> str:
        """Wait until the parked launcher exits. Return how."""
        assert self._child is not None
        child = self._child
        await termination.wait_for_exit(ProcessId(boot_id(), child.pid, started_at(child.pid)))
        exit_text = termination.describe_exit(await asyncio.to_thread(_kill, child))
        await self.close()
        return f"it {exit_text} while it was parked"

    def _set_state(self, state: str, memory_mb: int = 0) -> None:
        if state != self.state:
            self.state = state
            self._on_state(state, memory_mb)


def _read_line(line: socket.socket) -> bytes:
    """Read a line from a socket with a timeout; b"" when the other end closes first. Raises OSError."""
    received = b""
    while not received.endswith(b"\n"):
        chunk = line.recv(4096)
        if not chunk:
            return b""
        received += chunk
        if len(received) > LONGEST_LINE:
            raise OSError("it wrote an endless line")
    return received


def _exit_while_importing(child: subprocess.Popen[bytes]) -> str:
    """Wait for the exit of a launcher that has closed its socket, for `CLOSED_S` at most; describe it."""
    try:
        return f"it {termination.describe_exit(child.wait(CLOSED_S))} while importing"
    except subprocess.TimeoutExpired:
        return "it closed its socket while importing and did not exit"


def _resident_mb(pid: int) -> int:
    """Return the resident memory of a process in MiB; 0 when it has exited."""
    try:
        return int(psutil.Process(pid).memory_info().rss) >> 20
    except psutil.Error:
        return 0


def _can_restore_priority() -> bool:
    """Return whether this process may restore a lowered priority; else starts would stay slow."""
    if sys.platform != "linux":
        return False
    return os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20


def _kill(child: subprocess.Popen[bytes]) -> int | None:
    """Kill a launcher and its process group, unless it was waited for: its pid may be another's then. Return its exit
    code, its own if it has exited; None when it has not ended within `KILLED_WITHIN_S`."""
    if child.returncode is None:
        termination.signal_group(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(KILLED_WITHIN_S)
    return child.returncode
