"""Keeps one launcher parked for this host's build of vLLM, and hands it a start.

A parked one belongs to this agent alone: it ends when the agent's end of its socket closes, however the agent ended,
and the next agent parks its own. From the hand-over on it is a worker like any other, marker and all.
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

from cortex.functions.launch import vllm
from cortex.platform import untrusted
from cortex.platform.launcher.eligibility import ineligibility
from cortex.platform.process_id import boot_id
from cortex.platform.record import ProcessId
from cortex.platform.workers import process
from cortex.platform.workers.launch_context import ENGINE_MODULES

log = structlog.get_logger()

PARKED = Path(__file__).with_name("process.py")
ROOM = 96
"""Characters an instance's name may take in the place of the parked one's."""
IMPORT_S = 600.0
"""How long importing may take: it runs at low priority, and a cold disk is slow."""
LOW_PRIORITY = 10
"""While importing: a tenth of what anybody else gets. Lower still, and on a busy host it would never be done."""
HAND_OVER_S = 2.0
LONGEST_LINE = 64 * 1024
QUIET_S = 0.5
FIRST_PAUSE_S, MOST_PAUSE_S = 2.0, 300.0
LEAST_FREE_MB = 3072
"""Below this much free RAM nothing is parked: it takes about 1 GB."""
BASE_ENV = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ENGINE_MODULES), **vllm.ALWAYS}
"""What every start of weights that are on this host has anyway, and what is read while importing."""


class LauncherPool:
    """One agent's launcher. Without a command it keeps none."""

    def __init__(
        self,
        command: Sequence[str] | None,
        *,
        owner: str,
        log_path: Path,
        busy: Callable[[], bool],
        told: Callable[[str], None],
    ) -> None:
        """`command` is how vLLM is run here; `busy` whether a start is under way; `told` hears how it stands."""
        self._command = command
        self._owner, self._log_path, self._busy, self._told = owner, log_path, busy, told
        self._env = process.worker_environment(BASE_ENV | {process.OWNER: owner}, "")
        self._child: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._ready = False
        self._wanted = asyncio.Event()
        self.state = ""

    async def keep(self) -> None:
        """Keep one parked, for ever. A fresh one is made when the host is quiet."""
        if self._command is None:
            return
        pause = FIRST_PAUSE_S
        while True:
            await self._quiet()
            self._wanted.clear()
            why = await self._parked()
            if not why:
                pause = FIRST_PAUSE_S
                why = await self._gone()
                if not why:
                    continue
            log.warning("launcher_failed", why=why, log=str(self._log_path))
            self._say(f"failed: {why}")
            await asyncio.sleep(pause)
            pause = min(pause * 2, MOST_PAUSE_S)

    def hand_over(
        self, argv: Sequence[str], env: Mapping[str, str], log_path: Path, group: Path | None
    ) -> subprocess.Popen[bytes] | str:
        """Give the parked launcher a start; it is the worker from now on. Return its process, or why not."""
        if self._command is None:
            return "there is no launcher"
        if why := ineligibility(argv, env, self._env):
            return why
        if not self._ready or self._child is None or self._line is None:
            return f"the launcher was {self.state or 'not there'}"
        child, line = self._child, self._line
        self._child, self._line, self._ready = None, None, False
        self._wanted.set()
        job = {
            "argv": ["vllm", *argv[len(self._command) - (self._command[-1] == "serve") :]],
            "env": dict(env),
            "log": str(log_path),
            "group": str(group) if group else "",
        }
        try:
            with contextlib.suppress(OSError):  # it may be that only an administrator can: then it was never lowered
                os.setpriority(os.PRIO_PGRP, child.pid, 0)
            line.settimeout(HAND_OVER_S)
            line.sendall(json.dumps(job).encode() + b"\n")
        except OSError as error:
            _kill(child)
            return f"the launcher did not take it: {error}"
        finally:
            line.close()
        self._say("handed over")
        return child

    async def close(self) -> None:
        """Let the parked one go."""
        self._ready = False
        if self._line is not None:
            self._line.close()
        if self._child is not None:
            await asyncio.to_thread(_kill, self._child)
        self._child = self._line = None

    # Parking.

    async def _quiet(self) -> None:
        """Wait until no start is under way, so that importing takes nobody's time, and there is memory for it."""
        while True:
            free_mb = psutil.virtual_memory().available // (1024 * 1024)
            if self._busy():
                self._say("waiting for a start to end")
            elif free_mb < LEAST_FREE_MB:
                self._say(f"not parked: {free_mb} MiB of RAM are free")
            else:
                return
            await asyncio.sleep(QUIET_S)

    async def _parked(self) -> str:
        """Park one. Return why it failed; nothing when it is there."""
        assert self._command is not None
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._say("importing")
        try:
            with theirs:
                self._child, self._line = self._start(theirs), ours
            async with asyncio.timeout(IMPORT_S):
                said = await self._line_read(ours)
        except (OSError, TimeoutError) as error:
            await self.close()
            return str(error) or "it took too long"
        if not said:
            how = process.describe_exit(await asyncio.to_thread(self._child.wait))
            await self.close()
            return f"it {how} while importing"
        try:
            facts = {untrusted.name(k, 40): untrusted.line(str(v), 200) for k, v in json.loads(said).items()}
        except (ValueError, AttributeError, RecursionError):
            await self.close()
            return "it wrote something else than what it is"
        self._ready = True
        log.info("launcher_parked", pid=self._child.pid, facts=facts)
        self._say("parked")
        return ""

    def _start(self, line: socket.socket) -> subprocess.Popen[bytes]:
        assert self._command is not None
        if self._command[-1] == "serve":
            script = self._command[0]
            python, entry = str(Path(script).with_name("python")), script
        else:
            python, entry = self._command[0], self._command[-1]
        parked = f"parked-{secrets.token_hex(8)}"
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("wb") as output:
            child = subprocess.Popen(
                [python, str(PARKED), entry],
                # The two stand together and in this order: there the launcher writes its instance's name.
                env={**self._env, process.MARKER: parked, "CORTEX_PAD": "-" * ROOM},
                stdin=line.fileno(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if _can_raise_again():
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, child.pid, LOW_PRIORITY)
        return child

    async def _line_read(self, line: socket.socket) -> bytes:
        """Read a line; nothing when the other end closes first. Raises OSError for a line that is too long."""
        loop, received = asyncio.get_running_loop(), b""
        while not received.endswith(b"\n"):
            piece = await loop.sock_recv(line, 4096)
            if not piece:
                return b""
            if len(received) > LONGEST_LINE:
                raise OSError("it wrote a line without end")
            received += piece
        return received

    async def _gone(self) -> str:
        """Wait until the parked one is used or has ended. Return how it ended; nothing when it was used."""
        assert self._child is not None
        child = self._child
        exited = asyncio.ensure_future(
            process.wait_for_exit(ProcessId(boot_id(), child.pid, process.started_at(child.pid)))
        )
        wanted = asyncio.ensure_future(self._wanted.wait())
        try:
            await asyncio.wait((exited, wanted), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (exited, wanted):
                task.cancel()
            await asyncio.gather(exited, wanted, return_exceptions=True)
        if self._wanted.is_set():
            return ""
        how = process.describe_exit(await asyncio.to_thread(child.wait))
        await self.close()
        return f"it {how} while it was parked"

    def _say(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self._told(state)


def _can_raise_again() -> bool:
    """Whether this process may take back a lowered priority: else a start would stay slow for ever."""
    if sys.platform != "linux":
        return False
    return os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a launcher and all it started."""
    process.signal_group(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(5)
