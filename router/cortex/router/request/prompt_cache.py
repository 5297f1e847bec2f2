"""Keeps the prompts of one key out of the reach of others: what a worker has cached tells who sent it what.

A server that salts its cache (vLLM) is sent the caller's salt. llama.cpp compares a prompt with the one that its slot
worked on last, so each request is sent to a slot, and may use what that holds only if the slot's last request had the
same salt. This router knows that of requests that it sent itself; so beside other routers, and for requests that take
several slots, nothing that is cached is used. A router that has just come up is seen by others within a second or two.
Any other server is sent nothing, and its client is not told what was cached.
"""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec
from msgspec import Struct

from cortex.functions.servers import max_concurrency, server_of
from cortex.functions.spec import Function

MOST_INSTANCES = 1000
"""Instances whose max_concurrency are known."""
_COMPARED = 64 * 1024
"""Bytes of a body that are compared with those of earlier ones."""

Isolation = Literal["salt", "slots", "none"]


class Seat(Struct, frozen=True):
    """Where a request is worked on: in which slot, and whether it may use what that slot holds."""

    slot: int | None = None
    may_reuse: bool = False


UNKNOWN = Seat()


class _Slot:
    def __init__(self, id: int) -> None:
        self.id, self.salt, self.begin, self.busy, self.last = id, "", b"", False, 0


class _Slots:
    """The max_concurrency of one instance, as far as this router knows them."""

    def __init__(self, number: int, company: int) -> None:
        self.slots = [_Slot(i) for i in range(number)]
        self.company = company
        self.untracked = 0
        self.turn = 0

    def forget(self) -> None:
        """Any slot may hold any prompt."""
        for slot in self.slots:
            slot.salt = ""

    def choose(self, salt: str, begin: bytes) -> _Slot | None:
        """Return the free slot to use:

        (1) one of the same salt whose prompt goes on here;
        (2) one of no salt;
        (3) the one that was used longest ago.
        """
        free = [s for s in self.slots if not s.busy]
        alike = [(_common(s.begin, begin), s) for s in free if s.salt == salt]
        same, best = max(alike, key=lambda a: (a[0], a[1].last), default=(0, None))
        if best is not None and same >= len(best.begin) // 2:  # (1)
            return best
        unused = next((s for s in free if not s.salt), None)  # (2)
        return unused or min(free, key=lambda s: s.last, default=None)  # (3)


class SlotTable:
    """Which salt each slot of each instance worked for last."""

    def __init__(self) -> None:
        self._instances: dict[str, _Slots] = {}

    @contextmanager
    def seat(self, instance: str, number: int | None, salt: str, body: bytes, company: int) -> Iterator[Seat]:
        """Seat a request for as long as it is worked on. `number` is how many slots there are; None: nothing is known
        of the slots that it takes. `company` changes whenever other routers have used the instances."""
        known = self._known(instance, number, company)
        begin = body[:_COMPARED]
        slot = known.choose(salt, begin) if number else None
        if slot is None:
            known.untracked += 1
            known.forget()
            try:
                yield UNKNOWN
            finally:
                known.untracked -= 1
                known.forget()
            return
        may_reuse = slot.salt == salt and not known.untracked
        known.turn += 1
        slot.salt, slot.begin, slot.busy, slot.last = salt, begin, True, known.turn
        try:
            yield Seat(slot.id, may_reuse)
        finally:
            slot.busy = False

    def _known(self, instance: str, number: int | None, company: int) -> _Slots:
        known = self._instances.pop(instance, None)
        if known is None:
            known = _Slots(number or 0, company)
        elif number is not None and len(known.slots) != number:
            known.slots = [_Slot(i) for i in range(number)]
        if known.company != company:
            known.company = company
            known.forget()
        self._instances[instance] = known  # the last one used comes last
        if len(self._instances) > MOST_INSTANCES:
            idle = (i for i, k in self._instances.items() if not k.untracked and not any(s.busy for s in k.slots))
            self._instances.pop(next(idle, ""), None)
        return known


def isolation(function: Function, ran: str) -> Isolation:
    """Return how the server that an instance runs keeps salts apart."""
    return server_of(function, ran).isolation


def slots_to_seat(function: Function, ran: str, answers: int, *, alone: bool) -> int | None:
    """Return how many slots a request can be given one of, or None where it takes what slots it likes: beside other
    routers, for several answers, or where the function's own arguments bring in another cache or other slots."""
    if not alone or answers > 1 or any(word.partition("=")[0] in ("-cram", "--cache-ram") for word in function.args):
        return None
    return max_concurrency(function, server_of(function, ran))


def salted(body: bytes, salt: str) -> bytes:
    """Return a body for a server that salts its cache."""
    return _with(body, b'"cache_salt":%b' % msgspec.json.encode(salt))


def seated(body: bytes, seat: Seat) -> bytes:
    """Return a body for llama.cpp. Whatever is in it twice, the last one goes for."""
    if seat.slot is None:
        return _with(body, b'"cache_prompt":false')
    if seat.may_reuse:  # its client may have said that it wants nothing reused
        return _with(body, b'"id_slot":%d' % seat.slot)
    return _with(body, b'"id_slot":%d,"cache_prompt":false' % seat.slot)


def _with(body: bytes, fields: bytes) -> bytes:
    """Bodies are written here, as objects that hold the model's name at least."""
    assert body.endswith(b"}")
    return b"".join((memoryview(body)[:-1], b",", fields, b"}"))


def _common(one: bytes, other: bytes) -> int:
    """Return the length of what two texts begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


_COUNTS = re.compile(
    rb'("(cached_tokens|cache_n|prompt_n|cache_read_input_tokens|prompt_cache_hit_tokens|prompt_cache_miss_tokens)"'
    rb"\s*:\s*)(\d{1,18})"
)
"""In a text of an answer the quotes would be escaped, so this can only be a field."""


class HiddenCounts:
    """Takes the counts of what was cached out of a worker's answer. `cached` is what it counted."""

    def __init__(self) -> None:
        self.cached = 0
        self._line: list[bytes] = []

    def whole(self, body: bytes) -> bytes:
        """Return an answer without the counts."""
        return _COUNTS.sub(self._hide, body)

    def feed(self, data: bytes) -> bytes:
        """Return the lines of a stream that have ended, without the counts."""
        ended = data.rfind(b"\n") + 1
        if not ended:
            self._line.append(data)
            return b""
        whole = b"".join((*self._line, data[:ended]))
        self._line = [data[ended:]]
        return self.whole(whole)

    async def out_of(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield a stream without the counts."""
        async for chunk in chunks:
            if lines := self.feed(chunk):
                yield lines
        if line := self.close():
            yield line

    def close(self) -> bytes:
        """Return what no line end came after."""
        line, self._line = b"".join(self._line), []
        return self.whole(line)

    def _hide(self, found: re.Match[bytes]) -> bytes:
        if found[2] == b"cached_tokens":
            self.cached = max(self.cached, int(found[3]))
        return found[1] + b"null"
