"""Ids: made from what is already there, so that the same answer has the same ids, streamed or not."""

import re
from hashlib import blake2b

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_NINE = re.compile(r"[a-zA-Z0-9]{9}")
_OTHER = re.compile(r"[^a-zA-Z0-9_-]")


def nine(call_id: str) -> str:
    """A tool call's id for the templates (Mistral's) that insist on nine letters or digits."""
    if _NINE.fullmatch(call_id):
        return call_id
    number = int.from_bytes(blake2b(call_id.encode(), digest_size=8).digest())
    digits = []
    for _ in range(9):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(digits)


class CallIds:
    """The ids of one answer's tool calls: every call has one, none twice, all of `[A-Za-z0-9_-]`."""

    def __init__(self, answer_id: str) -> None:
        self._answer_id = answer_id
        self._used: set[str] = set()

    def settle(self, given: str | None) -> str:
        base = _OTHER.sub("_", given or "") or f"call_{self._answer_id}_{len(self._used)}"
        call_id, again = base, 1
        while call_id in self._used:
            again += 1
            call_id = f"{base}_{again}"
        self._used.add(call_id)
        return call_id
