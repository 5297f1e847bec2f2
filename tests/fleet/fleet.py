"""The fleet that the steps work on: its machines, its inventory and what its router says."""

from typing import Any

import httpx

from tests.fleet.load import ask
from tests.fleet.machines import Host, Machines
from tests.fleet.playbook import Deployment
from tests.fleet.report import Report
from tests.support.catalogues import aliases, entry, fake

GB24: list[dict[str, object]] = [{"name": "pretend 24 GB", "vram_mb": 24576}]
GB80: list[dict[str, object]] = [{"name": "pretend 80 GB", "vram_mb": 81920}]
SMALL = {"vram_mb": 14000}
BIG = {"vram_mb": 70000}


class RouterRefused(Exception):
    """The router's admin API answered with an error; the text has its status and body."""


class Fleet:
    """What the steps work on."""

    def __init__(self, hosts: Machines, report: Report) -> None:
        self.machines, self.report = hosts, report
        self.front, self.small, self.large, self.late = (hosts.add(n) for n in ("front", "small", "large", "late"))
        self.deployment = Deployment(hosts.folder / "deployment", hosts.key)
        self.url = f"http://{self.front.address}:31313"
        self.members: dict[Host, list[dict[str, object]]] = {self.small: GB24, self.large: GB80}
        self.first = self.second = self.key = ""

    def catalogue(self, *more: str) -> None:
        """Write models.toml."""
        self.deployment.models.write_text(
            "\n".join(
                [
                    "[defaults]\nidle_after_s = 7200",  # nothing goes idle while a deployment takes its time
                    fake("t/vectors", task="embed", vram_mb=1000),  # the first one does not chat
                    entry("cortex/harbour", engine="llamacpp", source="demo:harbour", context=2048),
                    fake("t/load", "--tps", "20", "--tokens", "30", vram_mb=4000, target_concurrency=64),
                    fake("t/long", "--tps", "20", "--tokens", "800", vram_mb=1000),
                    fake("t/one", **SMALL),
                    fake("t/two", **SMALL),
                    fake("t/big", **BIG),
                    fake("t/bigger", **BIG),
                    *more,
                    aliases({"harbour": "cortex/harbour", "one": "t/one"}),
                ]
            )
        )  # fmt: skip

    def rows(self) -> dict[str, Any]:
        """Return every function as the router lists it."""
        return {row["id"]: row for row in self._admin("GET", "functions")["functions"]}

    def hosts(self) -> dict[str, Any]:
        """Return every live host as the router lists it."""
        return {host["name"]: host for host in self._admin("GET", "hosts")["hosts"]}

    def knows(self) -> bool:
        """Whether the router has Redis."""
        health = httpx.get(f"{self.url}/health", timeout=30, trust_env=False)
        return bool(health.json()["record"] == "ok")

    def ask(self, model: str, *, stream: bool = False) -> httpx.Response:
        """Ask a model one thing, with the operator's key."""
        return ask(self.url, model, stream=stream, key=self.key)

    def cool(self, function: str) -> None:
        """Have a function's instances go, at once."""
        self._admin("POST", f"functions/{function}/cool?now=1")

    def where(self, function: str) -> dict[str, str]:
        """Return the function's serving instances, and on which host each is."""
        return {i["id"]: i["host"] for i in self.rows()[function]["instances"] if i["state"] == "ready"}

    def instances(self) -> dict[str, tuple[str, int]]:
        """Return host and process of every instance that serves."""
        placed = [i for row in self.rows().values() for i in row["instances"]]
        return {i["id"]: (i["host"], i["pid"]) for i in placed if i["state"] == "ready"}

    def _admin(self, method: str, path: str) -> Any:
        """Return what the router's admin API answers. Raises RouterRefused."""
        headers = {"authorization": f"Bearer {self.key}"}
        answer = httpx.request(method, f"{self.url}/admin/{path}", headers=headers, timeout=30, trust_env=False)
        if answer.is_error:
            raise RouterRefused(f"{method} /admin/{path}: {answer.status_code} {answer.text[:300]}")
        return answer.json()
