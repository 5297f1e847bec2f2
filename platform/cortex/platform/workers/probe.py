"""Asking a worker how it is: whether it is healthy, what it serves, and whether it is ours at all."""

from collections.abc import Collection

import aiohttp

from cortex.platform import worker_http
from cortex.platform.keys import FleetToken
from cortex.platform.record import Instance
from cortex.platform.worker_http import KEY_REFUSED, MODELS_BYTES, Unreadable
from cortex.platform.workers import served_model
from cortex.platform.workers.served_model import ServedModel

TIMEOUT_S = 5.0
_TOKEN: dict[str, tuple[str, dict[str, object]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "."}], "max_tokens": 1}),
    "completions": ("/v1/completions", {"prompt": ".", "max_tokens": 1}),
    "embeddings": ("/v1/embeddings", {"input": "."}),
    "rerank": ("/v1/rerank", {"query": ".", "documents": ["."]}),
}
"""The smallest request of each dialect that workers speak."""


class Probe:
    """Asks with an instance's own key: a stranger that took over its port does not know it."""

    def __init__(self, token: FleetToken) -> None:
        self._token = token
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._http:
            await self._http.close()

    async def answers(self, instance: Instance, dialects: Collection[str], within_s: float) -> bool:
        """Whether a worker answers a request of one token, on the path that clients' requests take, in time. An error
        is an answer, and so is a connection that breaks: another check tells of that."""
        if self._http is None:
            self._http = worker_http.session()
        path, body = next(request for dialect, request in _TOKEN.items() if dialect in dialects or dialect == "rerank")
        within = aiohttp.ClientTimeout(total=within_s)
        try:
            for key in self._token.worker_keys(instance.id):
                async with self._http.post(
                    instance.url + path,
                    json={"model": instance.function, **body},
                    headers=worker_http.headers(key),
                    timeout=within,
                    allow_redirects=False,
                ) as answer:
                    if answer.status not in KEY_REFUSED:
                        return True
        except TimeoutError:
            return False
        except (*worker_http.BREAKS, OSError):
            return True
        return True

    async def served(self, url: str, health: str, instance: str) -> dict[str, ServedModel] | None:
        """Return the models a healthy worker says it serves, and what it says of them; None while it is not healthy.

        Empty: whoever answers does not know the instance's key, or serves nothing.
        """
        if self._http is None:
            self._http = worker_http.session()
        http, within = self._http, aiohttp.ClientTimeout(total=TIMEOUT_S)
        try:
            for key in self._token.worker_keys(instance):
                headers = worker_http.headers(key)
                async with http.get(url + health, headers=headers, timeout=within, allow_redirects=False) as answer:
                    if answer.status in KEY_REFUSED:
                        continue
                    if answer.status != 200:
                        return None
                models = f"{url}/v1/models"
                async with http.get(models, headers=headers, timeout=within, allow_redirects=False) as answer:
                    if answer.status in KEY_REFUSED:
                        continue
                    if answer.status == 503:
                        return None
                    return (
                        served_model.read(await worker_http.whole(answer, MODELS_BYTES)) if answer.status == 200 else {}
                    )
            return {}
        except (*worker_http.BREAKS, OSError, ValueError, Unreadable):
            return None
