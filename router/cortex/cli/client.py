"""The CLI's HTTP client for a router."""

import os
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn
from urllib.parse import quote, urlencode

import httpx

from cortex.cli.exits import FAILED, NOT_FOUND, UNREACHABLE, Failed
from cortex.cli.local import key_for, running
from cortex.platform import untrusted
from cortex.platform.serving.trust import trust

LINE_LENGTH = 400
"""Maximum characters of one line of a worker's log."""
DEFAULT_URL = "http://127.0.0.1:31313"


def router_url() -> str:
    """Return the router's URL: `CORTEX_URL`, else a local `cortex up`, else the default port."""
    if url := os.environ.get("CORTEX_URL"):
        return url.rstrip("/")
    result = running()
    return result.url if result else DEFAULT_URL


def api_key(url: str) -> str:
    """Return the key for a router: `CORTEX_API_KEY`, else that of this user's `cortex up`, else empty."""
    return os.environ.get("CORTEX_API_KEY") or key_for(url)


class Router:
    """A router's admin API. Every method raises Failed with a hint."""

    def __init__(self, timeout_s: float = 30) -> None:
        self.url = router_url()
        key = api_key(self.url)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Loading the system's authorities takes a tenth of a second, and http has no use for them.
        trusted = trust(os.environ.get("CORTEX_CA_FILE", "")) if self.url.startswith("https:") else False
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False, verify=trusted
        )

    def functions(self) -> list[dict[str, Any]]:
        """Return every function."""
        result: list[dict[str, Any]] = self.ask("GET", "/admin/functions")["functions"]
        return result

    def function(self, name: str) -> dict[str, Any]:
        """Return one function, by id or alias."""
        return self.ask("GET", f"/admin/functions/{quote(name, safe='')}")

    def warm(self, name: str) -> str:
        """Start a function; return the instance's id."""
        return str(self.ask("POST", f"/admin/functions/{quote(name, safe='')}/warm")["instance"])

    def cool(self, name: str, *, now: bool) -> list[str]:
        """Drain a function's instances; return their ids."""
        path = f"/admin/functions/{quote(name, safe='')}/cool{'?now=1' if now else ''}"
        draining: list[str] = self.ask("POST", path)["instances"]
        return draining

    def plan(self, name: str) -> dict[str, Any]:
        """Return the plan of a warm."""
        return self.ask("POST", f"/admin/functions/{quote(name, safe='')}/warm?plan=1")

    def on_host(self, host: str, verb: str) -> dict[str, Any]:
        """Cordon, uncordon or drain a host."""
        return self.ask("POST", f"/admin/hosts/{quote(host, safe='')}/{verb}", timeout=3600)

    def hosts(self) -> list[dict[str, Any]]:
        """Return every live host's record."""
        result: list[dict[str, Any]] = self.ask("GET", "/admin/hosts")["hosts"]
        return result

    def every_host(self) -> list[dict[str, Any]]:
        """Return the record of every host: reporting ones, then silent ones (with `silent_s`)."""
        answer = self.ask("GET", "/admin/hosts")
        return [*answer["hosts"], *answer.get("silent", ())]

    def decisions(self, **filters: Any) -> list[dict[str, Any]]:
        """Return decisions, newest first."""
        query = {k: v for k, v in filters.items() if v}
        result: list[dict[str, Any]] = self.get("/admin/decisions", **query)["decisions"]
        return result

    def set(self, name: str, verb: str, **values: int) -> dict[str, Any]:
        """Override settings of a function at run time."""
        return self.post(f"/admin/functions/{quote(name, safe='')}/{verb}?{urlencode(values)}")

    def forget(self, name: str) -> dict[str, Any]:
        """Delete a function's measurements; return its id and the number of entries."""
        return self.post(f"/admin/functions/{quote(name, safe='')}/forget")

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """Send a GET request."""
        return self.ask("GET", f"{path}?{urlencode(query)}" if query else path)

    def post(self, path: str, body: Any = None, *, timeout_s: float = 30) -> dict[str, Any]:
        """Send a POST request."""
        return self.ask("POST", path, body, timeout=timeout_s)

    def lines(self, path: str, query: Mapping[str, Any], *, body: Any = None) -> Iterator[str]:
        """Yield the lines of an answer as they arrive; with a body the request is a POST."""
        timeout = httpx.Timeout(30, read=None)
        method = "POST" if body is not None else "GET"
        try:
            with self._http.stream(method, path, params=dict(query), json=body, timeout=timeout) as answer:
                if not answer.is_success:
                    answer.read()
                    self._raise_error(answer)
                yield from answer.iter_lines()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def last_lines(self, function: Mapping[str, Any], most: int = 5) -> list[str]:
        """Return the last lines of a failed worker's log; empty without an admin key, or without a log."""
        if not function["failure"] or not function["failed_instance"]:
            return []
        path = f"/admin/instances/{quote(function['failed_instance'], safe='')}/logs"
        try:
            lines = [untrusted.line(line, LINE_LENGTH) for line in self.lines(path, {"lines": 4 * most})]
        except Failed:
            return []
        return [line for line in lines if line.strip()][-most:]

    def stored(self, host: str) -> dict[str, Any]:
        """Return the weights on every host, or on one."""
        return self.ask("GET", f"/admin/weights?host={quote(host, safe='')}")

    def remove_weights(self, command: dict[str, Any]) -> dict[str, Any]:
        """Remove weights; return the removed and the remaining ones."""
        return self.ask("POST", "/admin/weights/remove", timeout=600, body=command)

    def prefetch(self, name: str, host: str) -> dict[str, Any]:
        """Fetch a function's weights; return the host and the job."""
        return self.ask("POST", "/admin/weights/fetch", body={"function": name, "host": host})

    def estimate(self, name: str, host: str) -> dict[str, Any]:
        """Return the estimated memory of a function."""
        query = f"function={quote(name, safe='')}&host={quote(host, safe='')}"
        return self.ask("GET", f"/admin/weights/estimate?{query}", timeout=90)

    def jobs(self, host: str) -> dict[str, Any]:
        """Return the downloads on every host, or on one."""
        return self.ask("GET", f"/admin/jobs?host={quote(host, safe='')}")

    def cancel_job(self, job: str) -> dict[str, Any]:
        """Cancel a download."""
        return self.ask("POST", f"/admin/jobs/{quote(job, safe='')}/cancel")

    def health(self) -> dict[str, Any]:
        """Return the router's health."""
        return self.ask("GET", "/health")

    def ask(self, method: str, path: str, body: Any = None, *, timeout: float = 30) -> dict[str, Any]:
        """Send a request and return its answer."""
        try:
            answer = self._http.request(method, path, json=body, timeout=timeout)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if not answer.is_success:
            self._raise_error(answer)
        return self._read(answer)

    def _read(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            result: dict[str, Any] = answer.json()
        except ValueError:
            raise Failed(f"{self.url} is not a cortex router: its answer is not JSON", code=UNREACHABLE) from None
        return result

    def _unreachable(self, error: httpx.HTTPError) -> Failed:
        hint = "Start one with `cortex up`, or set CORTEX_URL to a running one."
        return Failed(f"no router answers at {self.url}: {error}", code=UNREACHABLE, hint=hint)

    def _raise_error(self, answer: httpx.Response) -> NoReturn:
        error = self._read(answer).get("error", {})
        hints = {
            "model_not_found": "`cortex fn ls` lists every function.",
            "host_not_found": "`cortex host ls` lists every host.",
            "key_not_found": "`cortex key ls` lists every key.",
            "request_not_found": "`cortex req ls` lists the live requests.",
            "instance_not_found": "`cortex fn history NAME` shows what happened to it.",
            "job_not_found": "`cortex jobs ls` lists every download.",
        }
        hint = hints.get(error.get("code"), "")
        code = NOT_FOUND if hint else FAILED
        if answer.status_code in (401, 403):
            hint = "These commands send CORTEX_API_KEY; `cortex key new NAME --admin` creates a key."
        raise Failed(str(error.get("message", answer.text)), code=code, hint=hint)
