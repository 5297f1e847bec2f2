"""A running agent, and requests that gateways and scripts of the Rust system send."""

import contextlib
import json
import re
import subprocess
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import redis

from cortex.functions import catalogue
from cortex.platform.agent_messages import CatalogueUpdate
from cortex.platform.keys import host_token, worker_key
from cortex.platform.record import RouterReport
from tests.support.stack import CORTEX, environment, eventually, free_port

MESSAGES = [{"role": "user", "content": "Hello!"}]
PLAIN: Any = {"trust_env": False, "verify": False}
"""Options for plain HTTP: no proxy, and no loading of certificates."""
HELD = "0.001"
"""Tokens per second: practically, the next one is sent when the script changes."""
GPUS_MB = (24_000, 24_000, 48_000, 1_000)
STATUSES = {"loaded", "loading", "reloading", "recovering", "unloaded"}


class Agent:
    """A running `cortex agent`."""

    stuck: Future[httpx.Response]

    def __init__(self, folder: Path, redis_url: str, name: str, **settings: Any) -> None:
        folder.mkdir()
        self.name, self.folder, self.port = name, folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.redis_url = redis_url
        token_file = Path(redis_url.removeprefix("unix://")).with_name("fleet.token")  # one fleet, one token
        values = {"name": name, "listen": f"127.0.0.1:{self.port}", "keep_workers": False, **settings}
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
        env = {
            **environment(),
            **{f"CORTEX_AGENT__{key}".upper(): text for key, text in texts.items()},
            "CORTEX_REDIS__URL": redis_url,
            "CORTEX_TOKEN_FILE": str(token_file),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        self.process = subprocess.Popen(
            [*CORTEX, "agent"], env=env, stderr=(folder / "agent.log").open("wb"), start_new_session=True
        )
        self.without_token = httpx.Client(base_url=self.url, timeout=30, **PLAIN)
        self.first_health: dict[str, Any] = {}
        eventually(self._answers, within_s=30, what="the agent")
        self.token = token_file.read_text().strip()
        headers = {"Authorization": f"Bearer {self.token}"}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=30, **PLAIN)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log()
        with contextlib.suppress(httpx.HTTPError):
            self.first_health = self.without_token.get("/health").json()
        return bool(self.first_health)

    def end(self) -> None:
        """Stop it and its workers."""
        self.process.terminate()
        try:
            self.process.wait(15)
        finally:
            if self.process.poll() is None:
                self.process.kill()

    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def apply_catalogue(self, text: str) -> None:
        """Send it a catalogue, as a router does."""
        read = catalogue.read(text, file="models.toml", folder=str(self.folder))
        answer = self.http.put("/catalogue", content=msgspec.json.encode(CatalogueUpdate(read, "digest")))
        assert answer.status_code == 200, answer.text

    def load(self, model: str, harness: str = "fake", **more: Any) -> httpx.Response:
        return self.http.post("/models/load", json={"model_id": model, "harness": harness, **more})

    def loaded(self, model: str, harness: str = "fake", **more: Any) -> dict[str, Any]:
        """Load a model and return its instance."""
        answer = self.load(model, harness, **more)
        assert (answer.status_code, answer.json()) == (200, {"status": "loaded"})
        return self.instance(model)

    def unload(self, model: str) -> httpx.Response:
        return self.http.post("/models/unload", json={"model_id": model})

    def entry(self, model: str) -> dict[str, Any] | None:
        """Return a model's entry in `/models`."""
        entries = self.http.get("/models").json()
        assert all(entry["status"] in STATUSES for entry in entries)
        return next((entry for entry in entries if entry["id"] == model), None)

    def status(self, model: str) -> str | None:
        entry = self.entry(model)
        return entry["status"] if entry else None

    def endpoint(self, model: str) -> httpx.Response:
        return self.http.get(f"/models/{quote(model, safe='')}/endpoint")

    def activation(self) -> dict[str, Any]:
        return dict(self.http.get("/health").json()["activation"])

    def instances(self, model: str) -> list[dict[str, Any]]:
        return [i for i in self.http.get("/instances").json() if i["function"] == model]

    def instance(self, model: str) -> dict[str, Any]:
        (instance,) = self.instances(model)
        return instance

    def spawned(self, model: str) -> int:
        """Return the number of workers started for a model."""
        lines = self.log().splitlines()
        return sum('"worker_spawned"' in line and f'"function": "{model}"' in line for line in lines)

    def chat(self, model: str, **more: Any) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json={"model": model, "messages": MESSAGES, **more})

    def script(self, model: str, **changes: object) -> None:
        """Reset the script of a fake worker, with changes."""
        instance = self.instance(model)
        headers = {"Authorization": f"Bearer {worker_key(host_token(self.token, self.name), instance['id'])}"}
        assert self.without_token.put(f"{instance['url']}/fake", json=changes, headers=headers).status_code == 200

    def running(self, model: str) -> int:
        """Return the number of requests in flight at a fake worker."""
        metrics = self.without_token.get(f"{self.instance(model)['url']}/metrics").text
        match = re.search(r"^vllm:num_requests_running\S* (\S+)$", metrics, re.M)
        return int(float(match[1])) if match else -1

    def report(self, **values: Any) -> None:
        """Publish a router's report."""
        with redis.Redis.from_url(self.redis_url) as record:
            report = msgspec.json.encode(RouterReport(id="test", **values))
            record.set("cortex:router:test", report, px=60_000)
            record.sadd("cortex:routers", "test")
            record.publish("cortex:changed", "router:test")

    def stop_reporting(self) -> None:
        with redis.Redis.from_url(self.redis_url) as record:
            record.delete("cortex:router:test")


def later(work: Callable[..., httpx.Response], *arguments: Any, **more: Any) -> Future[httpx.Response]:
    """Send a request from another thread."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(work, *arguments, **more)
    finally:
        pool.shutdown(wait=False)
