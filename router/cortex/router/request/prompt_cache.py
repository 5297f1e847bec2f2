"""Isolate the cached prompts of API keys: cache hits would reveal what another key sent.

A server that salts its cache (vLLM) gets the caller's salt. llama.cpp compares a prompt with the last one of its slot,
so each request is assigned a slot, and reuses its cache only if the slot's last request had the same salt. This router
knows only its own requests; so with other routers, or for requests that take several slots, the cache is not used.
Other routers see a new one within a second or two. For functions with `keep_context` the agent assigns the slots
(`context_restores.py`). Other servers get no salt; their cached token counts are hidden.
"""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from cortex.functions.servers import Server, max_concurrency
from cortex.functions.spec import Function
from cortex.platform.agent_messages import Seat
from cortex.platform.api_keys import Principal
from cortex.platform.keys import FleetToken, cache_salt
from cortex.router.access.keyring import KeyRing
from cortex.router.dialects.core.large_object import Body, head, with_fields

MOST_SALTS = 10_000
MOST_INSTANCES = 1000
"""Instances whose slots are tracked."""
_COMPARED = 64 * 1024
"""Leading bytes of a body to compare with those of earlier ones."""


class CacheSalts:
    """The salts of the callers' prompts."""

    def __init__(self, keys: KeyRing, token: FleetToken) -> None:
        self._keys, self._token = keys, token
        self._salts: dict[tuple[str, str], str] = {}

    def of(self, function: Function, caller: Principal) -> str:
        """Return the salt of a caller's prompts in a worker's cache; empty if all callers share the cache.

        While no key exists, callers cannot be distinguished.
        """
        if function.cache == "shared" or not self._keys.has_keys:
            return ""
        by = self._token.current, caller.cache_owner
        salt = self._salts.get(by)
        if salt is None:
            if len(self._salts) >= MOST_SALTS:
                self._salts.clear()
            salt = self._salts[by] = cache_salt(*by)
        return salt


UNKNOWN = Seat()


class _Slot:
    def __init__(self, id: int) -> None:
        self.id, self.salt, self.prefix, self.busy, self.last = id, "", b"", False, 0


class _Slots:
    """The slots of one instance, as far as this router knows them."""

    def __init__(self, number: int, company: int) -> None:
        self.slots = [_Slot(i) for i in range(number)]
        self.company = company
        self.untracked = 0
        self.turn = 0

    def forget(self) -> None:
        """Forget the salts: any slot may hold any prompt."""
        for slot in self.slots:
            slot.salt = ""

    def choose(self, salt: str, prefix: bytes) -> _Slot | None:
        """Return the free slot to use:

        (1) one of the same salt whose prompt this one continues;
        (2) one without a salt;
        (3) the least recently used.
        """
        free = [s for s in self.slots if not s.busy]
        matching = [(_common(s.prefix, prefix), s) for s in free if s.salt == salt]
        same, best = max(matching, key=lambda a: (a[0], a[1].last), default=(0, None))
        if best is not None and same >= len(best.prefix) // 2:  # (1)
            return best
        unused = next((s for s in free if not s.salt), None)  # (2)
        return unused or min(free, key=lambda s: s.last, default=None)  # (3)


class SlotTable:
    """The last salt of each slot of each instance."""

    def __init__(self) -> None:
        self._instances: dict[str, _Slots] = {}

    @contextmanager
    def seat(self, instance: str, number: int | None, salt: str, body: Body, company: int) -> Iterator[Seat]:
        """Assign a slot to a request until it ends. `number`: slots of the instance; None: the request's slots are
        unknown. `company` changes when other routers have used the instances."""
        slots = self._slots_of(instance, number, company)
        prefix = head(body, _COMPARED)
        slot = slots.choose(salt, prefix) if number else None
        if slot is None:
            slots.untracked += 1
            slots.forget()
            try:
                yield UNKNOWN
            finally:
                slots.untracked -= 1
                slots.forget()
            return
        may_reuse = slot.salt == salt and not slots.untracked
        slots.turn += 1
        slot.salt, slot.prefix, slot.busy, slot.last = salt, prefix, True, slots.turn
        try:
            yield Seat(slot=slot.id, may_reuse=may_reuse)
        finally:
            slot.busy = False

    def _slots_of(self, instance: str, number: int | None, company: int) -> _Slots:
        slots = self._instances.pop(instance, None)
        if slots is None:
            slots = _Slots(number or 0, company)
        elif number is not None and len(slots.slots) != number:
            slots.slots = [_Slot(i) for i in range(number)]
        if slots.company != company:
            slots.company = company
            slots.forget()
        self._instances[instance] = slots  # the last one used comes last
        if len(self._instances) > MOST_INSTANCES:
            idle = (i for i, k in self._instances.items() if not k.untracked and not any(s.busy for s in k.slots))
            self._instances.pop(next(idle, ""), None)
        return slots


def slots_to_seat(function: Function, server: Server, answers: int) -> int | None:
    """Return the number of slots to choose from, or None if no slot can be assigned: for several answers, or if
    the function's arguments change the cache or the slots."""
    if answers > 1 or any(word.partition("=")[0] in ("-cram", "--cache-ram") for word in function.args):
        return None
    return max_concurrency(function, server)


def with_salt(body: Body, salt: str) -> Body:
    """Return a body for a server that salts its cache."""
    return with_fields(body, _salt_field(salt))


@functools.lru_cache(1024)
def _salt_field(salt: str) -> bytes:
    return b'"cache_salt":%b' % msgspec.json.encode(salt)


def with_seat(body: Body, seat: Seat) -> Body:
    """Return a body for llama.cpp, where the last of duplicate fields applies."""
    if seat.slot is None:
        return with_fields(body, b'"cache_prompt":false')
    if seat.may_reuse:  # keep the client's own `cache_prompt`
        return with_fields(body, b'"id_slot":%d' % seat.slot)
    return with_fields(body, b'"id_slot":%d,"cache_prompt":false' % seat.slot)


def _common(one: bytes, other: bytes) -> int:
    """Return the length of the common prefix."""
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
"""Quotes inside a string are escaped, so this matches fields only."""


class HiddenCounts:
    """Removes cached token counts from a worker's answer. `cached` has the worker's count."""

    def __init__(self) -> None:
        self.cached = 0
        self._line: list[bytes] = []

    def whole(self, body: bytes) -> bytes:
        """Return an answer without the counts."""
        return _COUNTS.sub(self._hide, body)

    def feed(self, data: bytes) -> bytes:
        """Return the complete lines of a stream, without the counts."""
        ended = data.rfind(b"\n") + 1
        if not ended:
            self._line.append(data)
            return b""
        whole = b"".join((*self._line, data[:ended]))
        self._line = [data[ended:]]
        return self.whole(whole)

    def close(self) -> bytes:
        """Return the last, unterminated line."""
        line, self._line = b"".join(self._line), []
        return self.whole(line)

    def _hide(self, match: re.Match[bytes]) -> bytes:
        if match[2] == b"cached_tokens":
            self.cached = max(self.cached, int(match[3]))
        return match[1] + b"null"
