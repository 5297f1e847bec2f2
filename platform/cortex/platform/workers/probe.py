"""Probes a worker: its health, its models, and whether it has the instance's key."""

import asyncio
import errno
import secrets
import select
import socket
import time
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

import aiohttp

from cortex.functions.servers import Server
from cortex.platform import served_model, worker_http
from cortex.platform.keys import HostToken
from cortex.platform.record import Instance
from cortex.platform.served_model import ServedModel
from cortex.platform.serving import address
from cortex.platform.worker_http import KEY_REFUSED, MODELS_BYTES, Unreadable
from cortex.platform.workers import canary

TIMEOUT_S = 5.0
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.005, 0.05
"""Between two looks at a port: a tenth of the time for which it is watched, within these."""
CANARY_S, CANARY_BYTES = 30.0, 4 * 1024 * 1024
_REQUESTS: dict[str, tuple[str, dict[str, object]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "."}], "max_tokens": 1}),
    "completions": ("/v1/completions", {"prompt": ".", "max_tokens": 1}),
    "embeddings": ("/v1/embeddings", {"input": "."}),
    "rerank": ("/v1/rerank", {"query": ".", "documents": ["."]}),
}
"""The smallest request of each worker dialect."""


async def opens(url: str, within_s: float) -> bool:
    """Return whether a worker's port accepts connections within a time, as soon as it does. A refused connection costs
    a fraction of a probe, so the port is looked at more often."""
    pause_s, deadline = min(max(SHORTEST_PAUSE_S, within_s / 10), LONGEST_PAUSE_S), time.monotonic() + within_s
    while not _accepts(*address.split(urlsplit(url).netloc)):
        if time.monotonic() + pause_s > deadline:
            return False
        await asyncio.sleep(pause_s)
    return True


def _accepts(host: str, port: int) -> bool:
    """Return whether a port of this machine accepts a connection, which is known at once."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as connection:
        connection.setblocking(False)
        if connection.connect_ex((host, port)) not in (0, errno.EINPROGRESS):
            return False
        poll = select.poll()
        poll.register(connection, select.POLLOUT)
        return bool(poll.poll(0)) and connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


class Probe:
    """Sends probes with the instance's own key, which another process on its port does not have."""

    def __init__(self, token: HostToken) -> None:
        self._token = token
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._http:
            await self._http.close()

    async def fails_health_check(self, instance: Instance) -> bool:
        """Return whether a worker answers its health check with a server error. vLLM's does after its engine died."""
        if self._http is None:
            self._http = worker_http.session()
        url, timeout = instance.url + instance.health_path, aiohttp.ClientTimeout(total=TIMEOUT_S)
        try:
            for key in self._token.worker_keys(instance.id):
                headers = worker_http.headers(key)
                async with self._http.get(url, headers=headers, timeout=timeout, allow_redirects=False) as answer:
                    if answer.status not in KEY_REFUSED:
                        return answer.status >= 500
        except (*worker_http.BREAKS, OSError):
            return False
        return False

    async def responds(self, instance: Instance, dialects: Collection[str], within_s: float) -> bool:
        """Return whether a worker answers a request of one token in time, on the path of client requests. An error
        counts as an answer, and so does a broken connection, which other checks report."""
        return await self.status(instance, dialects, within_s) is not None

    async def status(self, instance: Instance, dialects: Collection[str], within_s: float) -> int | None:
        """Return the status of a worker's answer to a request of one token; None: it did not answer in time; 0: the
        connection broke."""
        path, body = next(
            request for dialect, request in _REQUESTS.items() if dialect in dialects or dialect == "rerank"
        )
        try:
            return (await self._post(instance, path, body, within_s))[0]
        except TimeoutError:
            return None
        except (*worker_http.BREAKS, OSError):
            return 0

    async def canary(self, instance: Instance, server: Server) -> str:
        """Return the digest of what a worker computes for its canary; "" if it does not answer it."""
        path, body = canary.request_of(server, secrets.token_hex(8))
        try:
            status, answer = await self._post(instance, path, body, CANARY_S, CANARY_BYTES)
        except (*worker_http.BREAKS, OSError, TimeoutError, Unreadable):
            return ""
        return canary.digest_of(answer) if status == 200 else ""

    async def _post(
        self, instance: Instance, path: str, body: Mapping[str, object], within_s: float, read_bytes: int = 0
    ) -> tuple[int, bytes]:
        """Send a request with one of the instance's keys after another. Return status and body (at most `read_bytes`;
        0: unread) of the first answer that accepts the key; 0 and nothing if none does."""
        if self._http is None:
            self._http = worker_http.session()
        for key in self._token.worker_keys(instance.id):
            async with self._http.post(
                instance.url + path,
                json={"model": instance.name_at_worker, **body},
                headers=worker_http.headers(key),
                timeout=aiohttp.ClientTimeout(total=within_s),
                allow_redirects=False,
            ) as answer:
                if answer.status not in KEY_REFUSED:
                    return answer.status, await worker_http.whole(answer, read_bytes) if read_bytes else b""
        return 0, b""

    async def served_models(self, worker: Instance) -> dict[str, ServedModel] | None:
        """Return a healthy worker's models by id; None while it is not healthy.

        {} means that the server rejects the instance's key or lists no model. A command without a list serves its
        model: its health check answers.
        """
        if self._http is None:
            self._http = worker_http.session()
        http, timeout = self._http, aiohttp.ClientTimeout(total=TIMEOUT_S)
        try:
            for key in self._token.worker_keys(worker.id):
                headers = worker_http.headers(key)
                health = worker.url + worker.health_path
                async with http.get(health, headers=headers, timeout=timeout, allow_redirects=False) as answer:
                    if answer.status in KEY_REFUSED:
                        continue
                    if answer.status != 200:
                        return None
                models = f"{worker.url}/v1/models"
                async with http.get(models, headers=headers, timeout=timeout, allow_redirects=False) as answer:
                    if answer.status in KEY_REFUSED:
                        continue
                    if answer.status == 503:
                        return None
                    if worker_http.has_no_list(worker, answer.status):
                        return {worker.name_at_worker: ServedModel()}
                    return (
                        served_model.read(await worker_http.whole(answer, MODELS_BYTES)) if answer.status == 200 else {}
                    )
            return {}
        except (*worker_http.BREAKS, OSError, ValueError, Unreadable):
            return None
