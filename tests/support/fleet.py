"""Several agents and a router on one machine, as processes that a test can kill and restart."""

import contextlib
import signal
import socket
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec
import psutil
import redis
import trustme

from cortex.platform.keys import host_token, worker_key
from cortex.platform.process.environment import MARKER, OWNER
from cortex.platform.record import HostRecord, used_instance
from cortex.platform.workers import cgroup, orphans
from cortex.platform.workers.process import owner
from tests.support import command
from tests.support.activation import activated
from tests.support.stack import CORTEX, environment, eventually, free_port

TOKEN = "test-token-2b9e"


class Fleet:
    """Redis is the caller's. `agents` maps a host's name to more environment for its agent.

    With a listener of the caller's, the router is given it as by a service manager, and hands over when it stops. With
    `tls`, agents have certificates and are called by TLS alone.
    """

    def __init__(
        self,
        folder: Path,
        redis_url: str,
        models: str,
        agents: dict[str, dict[str, str]],
        *,
        workers: int = 1,
        held: socket.socket | None = None,
        tls: bool = False,
    ) -> None:
        self.folder, self.redis_url = folder, redis_url
        self.models = folder / "models.toml"
        self.models.write_text(models)
        (folder / "token").write_text(TOKEN)
        self._base = {
            **environment(),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "CORTEX_REDIS_URL": redis_url,
            "CORTEX_TOKEN_FILE": str(folder / "token"),
            "CORTEX_MODELS_CONFIG": str(self.models),
        }
        if tls:
            authority = trustme.CA()
            authority.cert_pem.write_to_path(folder / "ca.pem")
            certificate = authority.issue_cert("127.0.0.1")
            certificate.private_key_pem.write_to_path(folder / "agent.key")
            certificate.cert_chain_pems[0].write_to_path(folder / "agent.pem")
            self._base["CORTEX_CA_FILE"] = str(folder / "ca.pem")
        own_tls = {
            "CORTEX_AGENT__TLS_CERT": str(folder / "agent.pem"),
            "CORTEX_AGENT__TLS_KEY": str(folder / "agent.key"),
        }
        self._agent_env = {
            name: {
                **self._base,
                "CORTEX_AGENT__NAME": name,
                "CORTEX_AGENT__LISTEN": f"127.0.0.1:{free_port()}",
                "CORTEX_AGENT__STATE_DIR": str(folder / f"state-{name}"),
                "CORTEX_AGENT__LOG_DIR": str(folder / f"logs-{name}"),
                **(own_tls if tls else {}),
                **more,
            }
            for name, more in agents.items()
        }
        self._held = held
        self.url = f"http://127.0.0.1:{held.getsockname()[1] if held else free_port()}"
        self.env = {**self._base, "CORTEX_GATEWAY__LISTEN": self.url.removeprefix("http://"), "CORTEX_URL": self.url}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._workers = workers
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def __enter__(self) -> Self:
        try:
            for name in self._agent_env:
                self.start_agent(name)
            self.start_router()
            eventually(lambda: self._hosts() == set(self._agent_env), within_s=30, what="every host to be known")
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start_agent(self, name: str) -> None:
        """Start a host's agent."""
        self._start(name, ["agent"], self._agent_env[name])

    def start_jobs(self, name: str) -> None:
        """Start a host's job worker."""
        self._start(f"jobs-{name}", ["jobs"], self._agent_env[name])

    def start_router(self) -> None:
        """Start the router and wait until it answers."""
        argv = ["router", "--workers", str(self._workers)]
        if self._held is None:
            self._start("router", argv, self.env)
        else:
            env = {**self.env, "CORTEX_GATEWAY__HAND_OVER": "true"}
            self._spawn("router", **activated([*CORTEX, *argv], env, self._held))
        eventually(self._answers, within_s=30, what="the router")

    def _start(self, name: str, arguments: list[str], env: dict[str, str]) -> None:
        self._spawn(name, args=[*CORTEX, *arguments], env=env)

    def _spawn(self, name: str, **started: Any) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(**started, stdout=log, stderr=log, start_new_session=True)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End one process and wait for it."""
        self.processes[name].send_signal(number)
        self.processes[name].wait(15)

    def end(self) -> None:
        """End everything, workers included."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait(10)
        for mark in self._marks():  # as an agent does: engines overwrite the environment that `workers()` reads
            groups = cgroup.home(mark)
            orphans.kill_unknown(mark, groups)
            cgroup.remove_home(groups)

    def serve(self, models: str) -> None:
        """Replace the catalogue; wait until the router has it and no instance of the former one is left."""
        self.models.write_text(models)
        names = {model["id"] for model in tomllib.loads(models)["models"]}
        eventually(lambda: self._declared() == names, what="the router to have the catalogue")
        self.rest()

    def rest(self) -> None:
        """Let everything go at once, and take back every cordon: as it was at the beginning, but for the counts."""
        for host in self.records():
            self.http.post(f"/admin/hosts/{host}/uncordon").raise_for_status()

        def cold() -> bool:
            for name in {i.function for h in self.records().values() for i in h.instances}:
                self.http.post(f"/admin/functions/{name}/cool", params={"now": 1})
            return not self.workers() and not any(h.instances for h in self.records().values())

        eventually(cold, within_s=30, what="everything to be cold")

    def workers(self) -> list[psutil.Process]:
        """Return every process that any of these agents started, alive, known or not."""
        marks = self._marks()
        matches = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(OWNER) in marks:
                    matches.append(process)
        return matches

    def _marks(self) -> set[str]:
        return {owner(Path(env["CORTEX_AGENT__STATE_DIR"])) for env in self._agent_env.values()}

    def instances_of_workers(self) -> set[str]:
        """Return the instances whose processes are alive."""
        matches = set()
        for process in self.workers():
            with contextlib.suppress(psutil.Error):
                matches.add(process.environ()[MARKER])
        return matches

    def log(self, name: str) -> str:
        """Return the log of an agent or the router."""
        return (self.folder / f"{name}.log").read_text()

    def spawned(self) -> int:
        """Return how many workers were ever started."""
        return sum(self.log(name).count('"worker_spawned"') for name in self._agent_env)

    def records(self) -> dict[str, HostRecord]:
        """Return what the agents say in the record."""
        with redis.Redis.from_url(self.redis_url) as client:
            values = [client.get(f"cortex:host:{name}") for name in self._agent_env]
        decoded = [msgspec.json.decode(v, type=HostRecord) for v in values if v]
        return {h.name: h for h in decoded}

    def worker_key(self, instance: str) -> str:
        """Return the key of a worker that is in the record."""
        host = next(h.name for h in self.records().values() if instance in {i.id for i in h.instances})
        return worker_key(host_token(TOKEN, host), instance)

    def last_use(self, instance: str) -> float | None:
        """Return when routers last used an instance, by the record; None: never."""
        with redis.Redis.from_url(self.redis_url) as client:
            score = client.zscore("cortex:used", used_instance(instance))
        return None if score is None else float(score)

    def function(self, name: str) -> dict[str, Any]:
        """Return what the router says of a function."""
        answer: dict[str, Any] = self.http.get(f"/admin/functions/{name}").json()
        return answer

    def chat(self, model: str, **more: Any) -> httpx.Response:
        """Ask for a chat completion."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}], **more}
        return self.http.post("/v1/chat/completions", json=body)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `cortex` command against it."""
        return command.run(self.env, *arguments)

    def _answers(self) -> bool:
        try:
            return self.http.get("/health").is_success
        except httpx.HTTPError:
            return False

    def _hosts(self) -> set[str]:
        return {h["name"] for h in self.http.get("/admin/hosts").json().get("hosts", ())}

    def _declared(self) -> set[str]:
        functions = self.http.get("/admin/functions").raise_for_status().json()["functions"]
        return {f["id"] for f in functions if f["declared"]}
