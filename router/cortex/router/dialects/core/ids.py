"""Ids of tool calls, derived from the answer: the same answer has the same ids, streamed or not."""

import re
from hashlib import blake2b

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_NINE = re.compile(r"[a-zA-Z0-9]{9}")
_OTHER = re.compile(r"[^a-zA-Z0-9_-]")


def alnum9(call_id: str) -> str:
    """Return a tool call's id as nine letters or digits, which Mistral's templates require."""
    if _NINE.fullmatch(call_id):
        return call_id
    number = int.from_bytes(blake2b(call_id.encode(), digest_size=8).digest())
    digits = []
    for _ in range(9):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(digits)


class CallIds:
    """Ids of one answer's tool calls: present, unique, and made of `[A-Za-z0-9_-]`."""

    def __init__(self, answer_id: str) -> None:
        self._answer_id = answer_id
        self._used: set[str] = set()

    def assign(self, worker_id: str | None) -> str:
        base = _OTHER.sub("_", worker_id or "") or f"call_{self._answer_id}_{len(self._used)}"
        call_id, attempt = base, 1
        while call_id in self._used:
            attempt += 1
            call_id = f"{base}_{attempt}"
        self._used.add(call_id)
        return call_id
