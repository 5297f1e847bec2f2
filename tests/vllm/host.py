"""A host with real vLLM, and what tests ask of it."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import httpx
import psutil

from cortex.functions.lifecycle import State
from cortex.platform.process.environment import MARKER
from cortex.platform.record import HostRecord, Instance
from tests.support.fleet import Fleet
from tests.support.stack import eventually

IMPORT_S = 600.0


class VllmHost(Fleet):
    """One agent, one router."""

    def __init__(self, folder: Path, redis_url: str, models: str, vllm: str) -> None:
        agent = {
            "CORTEX_AGENT__ENGINES": json.dumps([{"name": "vllm", "path": vllm}]),
            "CORTEX_AGENT__DEVICES": json.dumps([{"name": "a small cpu", "vram_mb": 6000, "kind": "cpu"}]),
            "CORTEX_AGENT__CACHE_DIR": str(Path(vllm).parent / "cache"),
        }
        super().__init__(folder, redis_url, models, {"a": agent})

    def restart_agent(self, **env: str) -> None:
        """Kill the agent and start another, which has this in its environment, too."""
        self.kill("a")
        self._start("a", ["agent"], {**self._agent_env["a"], **env})

    def record(self) -> HostRecord:
        """Return what the host says of itself, as soon as it does: its agent may be starting."""
        record = eventually(lambda: self.records().get("a"), within_s=30, what="the host's record")
        assert record is not None
        return record

    def until_parked(self) -> int:
        """Wait until a launcher is parked; return its pid."""
        eventually(lambda: self.launcher() == "parked", within_s=IMPORT_S, what="a parked launcher")
        return next(w.pid for w in self.parked() if _session(w) == w.pid)

    def launcher(self) -> str:
        """Return how the host says its launcher stands."""
        return self.record().launchers.get("vllm", "")

    def parked(self) -> list[psutil.Process]:
        """Return the processes of launchers that are parked."""
        return [w for w in self.workers() if _marker(w).startswith("parked-")]

    def instance(self, function: str) -> Instance:
        """Return the function's only instance."""
        (matches,) = [i for i in self.record().instances if i.function == function]
        return matches

    def starts(self, function: str) -> bool:
        """Whether an instance of a function is starting."""
        return any(i.function == function and i.state is State.STARTING for i in self.record().instances)

    def ask(self, function: str, **more: Any) -> "Asking":
        """Ask for a chat completion in the background."""
        return Asking(self, function, more)

    def text(self, function: str) -> str:
        """Return what a function says, the same every time."""
        answer = self.chat(function, max_tokens=12, temperature=0)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    def cold(self, *functions: str) -> None:
        """Let functions go and wait until they have."""
        for function in functions:
            assert self.cli("fn", "cool", function, "--now").returncode == 0
        eventually(
            lambda: not [i for i in self.record().instances if i.function in functions], within_s=30, what="cold"
        )

    def why_ready(self, function: str) -> str:
        """Return what the newest decision says of how a function became ready."""
        body = {"function": function, "what": "ready", "limit": "1"}
        return next((d["why"] for d in self.http.get("/admin/decisions", params=body).json()["decisions"]), "")

    def family(self, pid: int) -> list[psutil.Process]:
        """Return a worker and all it has started.

        By session and descent: vLLM's children write their titles over the environment that would show the marker.
        """
        leader = psutil.Process(pid)
        below = [leader, *leader.children(recursive=True)]
        return below + [p for p in self.workers() if p not in below and _session(p) == pid]


def _session(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return 0


def runs(process: psutil.Process) -> bool:
    """Whether a process has not ended."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _marker(process: psutil.Process) -> str:
    try:
        return process.environ().get(MARKER, "")
    except psutil.NoSuchProcess:
        return ""


class Asking(threading.Thread):
    """A request under way."""

    def __init__(self, host: VllmHost, function: str, more: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._host, self._function, self._more = host, function, more
        self._answer: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        self._answer = self._host.chat(self._function, max_tokens=12, temperature=0, **self._more)

    def answer(self) -> httpx.Response:
        """Wait for the answer."""
        self.join(600)
        assert self._answer is not None, "no answer"
        return self._answer
