"""A worker's canary: what its model computes for a fixed short request. Pure.

A process must compute the same before it is frozen and after it is restored. If it does not, its memory came back
damaged, and it must not serve. Only a digest is stored.
"""

import hashlib
from typing import Any

import msgspec

from cortex.functions.servers import Server

TEXT = "Count from one to ten:"
TOKENS = 8
_GREEDY = {"max_tokens": TOKENS, "temperature": 0, "seed": 0}
_REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT}], **_GREEDY}),
    "completions": ("/v1/completions", {"prompt": TEXT, **_GREEDY}),
    "embeddings": ("/v1/embeddings", {"input": TEXT}),
    "rerank": ("/v1/rerank", {"query": TEXT, "documents": [TEXT]}),
}
_COMPUTED = ("content", "reasoning", "reasoning_content", "text", "embedding", "relevance_score")
"""The fields of answers that a model computes; others are ids, times and counts."""


def request_of(server: Server, salt: str) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of the canary of a server, without the model.

    An answer from cached prompt tokens may differ in its last bits. A different `salt` each time prevents their use.
    """
    path, body = next(r for dialect, r in _REQUESTS.items() if dialect in server.dialects or dialect == "rerank")
    uncached: dict[str, dict[str, Any]] = {"salt": {"cache_salt": salt}, "slots": {"cache_prompt": False}, "none": {}}
    return path, {**body, **uncached[server.isolation]} if "max_tokens" in body else body


def digest_of(answer: bytes) -> str:
    """Return the digest of what the model computed for an answer; "" if it contains nothing computed."""
    try:
        values = list(_values(msgspec.json.decode(answer)))
    except msgspec.MsgspecError:
        return ""
    return hashlib.sha256(msgspec.json.encode(values)).hexdigest() if any(v for _, v in values) else ""


def _values(part: Any) -> Any:
    """Yield the computed fields of an answer, in order."""
    if isinstance(part, list):
        for item in part:
            yield from _values(item)
    elif isinstance(part, dict):
        for name, value in part.items():
            if name in _COMPUTED:
                yield name, value
            else:
                yield from _values(value)
