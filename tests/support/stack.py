"""A whole cortex for tests: the real `cortex up` in its own directories.

`Stack` starts it, talks to it and ends it; nothing of one stack is seen by another. `eventually` waits for
something to become true, with a deadline.
"""

import atexit
import contextlib
import functools
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import certifi
import httpx
import psutil
import redis

from cortex.platform import embedded_redis
from tests.support import command

T = TypeVar("T")

CORTEX = [sys.executable, "-m", "cortex.cli"]
START_S = 70.0


def eventually(look: Callable[[], T], *, within_s: float = 15.0, what: str = "") -> T:
    """Look until what is seen is true, and return it. A look that takes long is followed by a pause as long: it costs
    the process under test about as much."""
    deadline = time.monotonic() + within_s
    while True:
        began = time.monotonic()
        view = look()
        if view:
            return view
        now = time.monotonic()
        assert now < deadline, f"not within {within_s} s: {what or look}; last seen: {view!r}"
        time.sleep(min(0.5, max(0.02, 3 * (now - began))))


@functools.cache
def one_authority() -> str:
    """Return a file with a single certificate authority: every process that imports aiohttp loads those of the machine
    twice, a tenth of a second of CPU, and no test calls a server that they know."""
    text = Path(certifi.where()).read_text()
    end = "-----END CERTIFICATE-----\n"
    with tempfile.NamedTemporaryFile("w", prefix="authority", suffix=".pem", delete=False) as file:
        file.write(text[: text.index(end)] + end)
    atexit.register(Path(file.name).unlink, missing_ok=True)
    return file.name


def environment() -> dict[str, str]:
    """Return the environment that a program under test starts from."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("CORTEX_")}
    return {**inherited, "SSL_CERT_FILE": one_authority()}


_ports = itertools.cycle(random.SystemRandom().sample(range(10_000, 20_000), 10_000))


def free_port() -> int:
    """Return a port that nothing listens on, below those that the kernel gives to connections: whatever connects
    meanwhile does not take it. A process gets no port twice."""
    for port in _ports:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("unreachable: the ports repeat")


class Stack:
    """A running `cortex up`."""

    def __init__(
        self,
        folder: Path,
        models: str,
        *,
        workers: int = 1,
        env: dict[str, str] | None = None,
        more: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.models = folder / "models.toml"
        self.models.write_text(models)
        self.port = free_port()
        self.taken_port = 0
        self._former_lines = 0
        self.env = {
            **environment(),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "CORTEX_AGENT__LISTEN": f"127.0.0.1:{free_port()}",
            "CORTEX_AGENT__NAME": "here",
            "CORTEX_GATEWAY__METRICS_LISTEN": f"127.0.0.1:{free_port()}",
            "PYTHONUNBUFFERED": "1",
            **(env or {}),
        }
        self.process = subprocess.Popen(
            [*CORTEX, "up", "--models", str(self.models), "--port", str(self.port), "--workers", str(workers), *more],
            env=self.env,
            stdout=(folder / "up.out").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            eventually(lambda: self._is_up(), within_s=START_S, what="cortex up")
        except AssertionError:
            self.end()
            raise AssertionError(f"cortex up did not come up:\n{self.output()}") from None
        except BaseException:
            self.end()
            raise
        self.url = f"http://127.0.0.1:{self.port}"
        self.env["CORTEX_URL"] = self.url
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False, auth=self._as_its_user)

    def _is_up(self) -> bool:
        assert self.process.poll() is None, f"cortex up ended:\n{self.output()}"
        return "Ctrl-C stops everything" in self.output()

    def local_key(self) -> str:
        """Return the admin key that `cortex up` wrote for its user."""
        return (self.folder / "state" / "cortex" / "local.key").read_text().strip()

    def _as_its_user(self, request: httpx.Request) -> httpx.Request:
        """Changes need the local key; everything else goes without one, as from any program of the machine."""
        if request.url.path.startswith("/admin/") and request.method != "GET":
            request.headers.setdefault("authorization", f"Bearer {self.local_key()}")
        return request

    def output(self) -> str:
        """Return all it has printed."""
        return (self.folder / "up.out").read_text()

    def log(self, name: str) -> str:
        """Return the log of one of its children."""
        return (self.folder / "state" / "cortex" / "log" / f"{name}.log").read_text()

    def end(self) -> None:
        """Stop it, however it is."""
        below = self.processes()
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        for left in (*below, *self.processes()):
            with contextlib.suppress(psutil.Error):
                left.kill()
        self.process.wait(5)

    def processes(self) -> list[psutil.Process]:
        """Return every process that belongs to it, workers included, by the state directory they were given."""
        matches = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if (
                    process.status() != psutil.STATUS_ZOMBIE
                    and process.pid != self.process.pid
                    and process.environ().get("XDG_STATE_HOME") == self.env["XDG_STATE_HOME"]
                ):
                    matches.append(process)
        return matches

    def child(self, name: str) -> psutil.Process:
        """Return one of the processes `cortex up` started: agent, jobs or router."""
        for process in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):  # one that is just ending has no command line
                if name in process.cmdline():
                    return process
        raise AssertionError(f"no {name} runs")

    def cli(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a `cortex` command against it."""
        return command.run({**self.env, **(env or {})}, *arguments)

    def cool(self, name: str) -> None:
        """Stop a function's instances, and wait until they are gone."""
        answer = self.http.post(f"/admin/functions/{name}/cool", params={"now": 1}).raise_for_status()
        stopping = set(answer.json()["instances"])
        eventually(
            lambda: stopping.isdisjoint(i["id"] for i in self.function(name)["instances"]),
            within_s=20,
            what=f"{name} to be cold",
        )

    def serve(self, models: str) -> None:
        """Replace the catalogue; wait until the router has it and no instance of the former one is left."""
        former = self._instances()
        self._former_lines = len(self.log("agent").splitlines())
        self.models.write_text(models)
        names = {model["id"] for model in tomllib.loads(models)["models"]}
        eventually(lambda: self._declared() == names, what="the router to have the catalogue")
        for name in set(former.values()):
            self.http.post(f"/admin/functions/{name}/cool", params={"now": 1})
        eventually(lambda: former.keys().isdisjoint(self._instances()), within_s=20, what="former instances to stop")

    def _declared(self) -> set[str]:
        functions = self.http.get("/admin/functions").raise_for_status().json()["functions"]
        return {f["id"] for f in functions if f["declared"]}

    def _instances(self) -> dict[str, str]:
        """Return the function of each instance."""
        hosts = self.http.get("/admin/hosts").raise_for_status().json()["hosts"]
        return {i["id"]: i["function"] for host in hosts for i in host["instances"]}

    def function(self, name: str) -> dict[str, Any]:
        """Return what the router says of a function."""
        answer = self.http.get(f"/admin/functions/{name}")
        assert answer.status_code == 200, answer.text
        payload: dict[str, Any] = answer.json()
        return payload

    def instance(self, name: str) -> dict[str, Any]:
        """Return the function's only instance."""
        (result,) = self.function(name)["instances"]
        return dict(result)

    def state(self, name: str) -> str:
        """Return a function's state."""
        return str(self.function(name)["state"])

    def until(self, name: str, state: str, within_s: float = 20.0) -> None:
        """Wait until a function is in a state."""
        eventually(lambda: self.state(name) == state, within_s=within_s, what=f"{name} to be {state}")

    def spawned(self, name: str) -> int:
        """Return how many workers of a function were started with this catalogue."""
        lines = self.log("agent").splitlines()[self._former_lines :]
        return sum('"worker_spawned"' in line and f'"function": "{name}"' in line for line in lines)

    def chat(self, model: str, text: str = "Hello!", **more: Any) -> httpx.Response:
        """Ask for a chat completion."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
        return self.http.post("/v1/chat/completions", json=body)


@contextlib.contextmanager
def own_redis(folder: Path) -> Iterator[str]:
    """Run a Redis of the test's own; yields its URL."""
    socket_path = folder / "r.sock"
    server = subprocess.Popen(
        embedded_redis.command(embedded_redis.server(), folder, socket_path), stdout=subprocess.DEVNULL
    )
    url = f"unix://{socket_path}"
    try:
        eventually(lambda: _answers(url), what="redis")
        yield url
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait(5)


def _answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False
