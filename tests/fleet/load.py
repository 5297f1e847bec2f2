"""Clients outside the fleet that go on asking while something is done to it, and count what was lost."""

import threading
import time
from collections import Counter
from types import TracebackType

import httpx

PATIENCE_S = 120.0


def ask(url: str, model: str, *, stream: bool = False, key: str = "", most: int = 64) -> httpx.Response:
    """Ask a model one thing, on a connection of its own."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": most, "stream": stream}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=PATIENCE_S, trust_env=False)


def ask_as_anthropic(url: str, model: str, *, key: str = "") -> httpx.Response:
    """Ask a model one thing, as clients of Anthropic do."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}
    headers = {"anthropic-version": "2023-06-01", **({"x-api-key": key} if key else {})}
    return httpx.post(f"{url}/v1/messages", json=body, headers=headers, timeout=PATIENCE_S, trust_env=False)


def whole(answer: httpx.Response, *, stream: bool) -> bool:
    """Whether an answer is all there."""
    if answer.status_code != 200:
        return False
    if stream:
        return answer.text.rstrip().endswith("data: [DONE]") and '"error"' not in answer.text
    return bool(answer.json()["choices"][0]["message"]["content"])


class Load:
    """So many clients at once, half of them streaming; `lost` says what went wrong, with how often it did."""

    def __init__(self, url: str, model: str, *, clients: int = 6, key: str = "") -> None:
        self._url, self._model, self._key = url, model, key
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(n % 2 == 0,), daemon=True) for n in range(clients)]
        self.answered = 0
        self.longest_s = 0.0
        self.lost: Counter[str] = Counter()

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _client(self, stream: bool) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                answer = ask(self._url, self._model, stream=stream, key=self._key)
                if whole(answer, stream=stream):
                    self.answered += 1
                else:
                    self.lost[f"{answer.status_code} {answer.text[-160:]!r}"] += 1
            except httpx.HTTPError as error:
                self.lost[f"{type(error).__name__}: {error}"] += 1
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self._stop.wait(0.05)
