"""Asking a worker how it is: whether it is healthy, what it serves, and whether it is ours at all."""

import aiohttp

from cortex.platform import worker_http
from cortex.platform.keys import FleetToken
from cortex.platform.worker_http import KEY_REFUSED, MODELS_BYTES, Unreadable
from cortex.platform.workers import card
from cortex.platform.workers.card import WorkerCard

TIMEOUT_S = 5.0


class Probe:
    """Asks with an instance's own key: a stranger that took over its port does not know it."""

    def __init__(self, token: FleetToken) -> None:
        self._token = token
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._http:
            await self._http.close()

    async def served(self, url: str, health: str, instance: str) -> dict[str, WorkerCard] | None:
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
                    return card.read(await worker_http.whole(answer, MODELS_BYTES)) if answer.status == 200 else {}
            return {}
        except (*worker_http.BREAKS, OSError, ValueError, Unreadable):
            return None
