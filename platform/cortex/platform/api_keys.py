"""API keys as values: who a caller is, and what that allows. Pure: secrets, ids and times are arguments.

A key is shown once and never stored: the record holds its SHA-256. A fast hash is enough, because a key is 32 random
bytes; and the lookup of a digest leaks nothing about the keys through its timing.
"""

import enum
import fnmatch
import functools
import hashlib
import re
from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from cortex.platform.budget import Budget

PREFIX = "sk-cortex-"
"""Prefix of every key, so that secret scanners and people recognise one."""
SECRET_BYTES = 32

Count = Annotated[int, Meta(ge=0, le=2**53)]
Glob = Annotated[str, Meta(min_length=1, max_length=200)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}\Z")]
"""Names reach logs, labels and paths, hence the limited characters."""
Group = Annotated[str, Meta(pattern=r"^(?:[A-Za-z0-9][A-Za-z0-9._@-]{0,62})?\Z")]
"""The name of a group of keys, or nothing."""


class Right(enum.StrEnum):
    """What a route needs; every route's `opt["needs"]` is one of these."""

    NOTHING = "nothing"
    INFERENCE = "inference"
    STATUS = "status"
    ADMIN = "admin"


class Scope(enum.StrEnum):
    """What a key is for."""

    INFERENCE = "inference"
    STATUS = "status"
    ADMIN = "admin"


RIGHTS = {
    Scope.INFERENCE: frozenset({Right.NOTHING, Right.INFERENCE}),
    Scope.STATUS: frozenset({Right.NOTHING, Right.STATUS}),
    Scope.ADMIN: frozenset(Right),
}


class Priority(enum.StrEnum):
    """The order of requests that compete, and how much of a function's queue a key's requests may fill."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"

    def share(self, queue: int) -> int:
        """Return the queue limit for a request of this priority: half of the queue for low, one and a half times the
        queue for high."""
        match self:
            case Priority.LOW:
                return -(-queue // 2)
            case Priority.HIGH:
                return queue + -(-queue // 2)
        return queue


class Limits(Struct, frozen=True, kw_only=True):
    """What a key may use over all routers; 0: no limit."""

    rpm: Count = 0
    tpm: Count = 0
    concurrent: Count = 0

    def __bool__(self) -> bool:
        return bool(self.rpm or self.tpm or self.concurrent)


class ApiKey(Struct, frozen=True, kw_only=True):
    """One key as the record holds it, under the SHA-256 of the key itself."""

    digest: str
    id: str
    """Names the key over its rotations; limits are counted under it."""
    name: Name
    scope: Scope = Scope.INFERENCE
    functions: Annotated[tuple[Glob, ...], Meta(max_length=100)] = ()
    """Globs of function ids; none: all of them."""
    limits: Limits = Limits()
    budget: Budget = Budget()
    priority: Priority = Priority.NORMAL
    group: Group = ""
    """Keys of one group share cached prompts; a key without one shares them with no other key."""
    created: float = 0.0
    expires: float = 0.0
    """Unix time; 0: never."""
    replaced: bool = False
    """It was rotated: another key replaces it, and it expires with the overlap."""

    def over(self, now: float) -> bool:
        """Whether it has expired."""
        return bool(self.expires) and now >= self.expires


class Session(Struct, frozen=True, kw_only=True):
    """A browser that logged in. Times are Unix times."""

    key: str
    """The digest of the API key that was used to log in."""
    began: float
    ends: float


class Principal(Struct, frozen=True, kw_only=True):
    """The caller of a request, and its rights."""

    id: str
    name: str
    scope: str
    rights: frozenset[Right]
    functions: tuple[str, ...] = ()
    limits: Limits = Limits()
    budget: Budget = Budget()
    priority: Priority = Priority.NORMAL
    group: str = ""
    expires: float = 0.0
    is_batch: bool = False
    """Whether the caller is a batch worker that acts for the key."""

    @property
    def cache_owner(self) -> str:
        """The owner of its cached prompts: its group, or itself. No id contains a colon."""
        return f"group:{self.group}" if self.group else self.id

    def may(self, right: str) -> bool:
        """Whether it may call a route that needs this right."""
        return right in self.rights

    def may_use(self, function: str) -> bool:
        """Whether it may use a function, by the function's id."""
        return not self.functions or _any_of(self.functions).match(function) is not None


@functools.lru_cache(maxsize=1024)
def _any_of(globs: tuple[str, ...]) -> re.Pattern[str]:
    """Return the pattern of all names that match one of the globs: a list of models asks for each name of it."""
    return re.compile("|".join(map(fnmatch.translate, globs)))


ANONYMOUS = "anonymous"
LOCAL = Principal(id="local", name="local", scope=Scope.ADMIN, rights=RIGHTS[Scope.ADMIN])
"""The holder of the key that `cortex up` wrote for its user."""


def anonymous(*rights: Right) -> Principal:
    """Return a caller without a key."""
    return Principal(id=ANONYMOUS, name=ANONYMOUS, scope=ANONYMOUS, rights=frozenset({Right.NOTHING, *rights}))


def principal(key: ApiKey) -> Principal:
    """Return the caller of a key."""
    return Principal(
        id=key.id,
        name=key.name,
        scope=key.scope,
        rights=RIGHTS[key.scope],
        functions=key.functions,
        limits=key.limits,
        budget=key.budget,
        priority=key.priority,
        group=key.group,
        expires=key.expires,
    )


def for_batch(caller: Principal) -> Principal:
    """Return the principal of a batch worker that acts for a caller: inference only, at low priority."""
    rights = caller.rights & RIGHTS[Scope.INFERENCE]
    return replace(caller, rights=rights, priority=Priority.LOW, is_batch=True)


def digest(secret: str) -> str:
    """Return the digest under which a key is stored."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def keys_of(keys: Iterable[ApiKey], name: str) -> list[ApiKey]:
    """Return the keys with a name or an id, the current one first."""
    matches = [k for k in keys if name in (k.name, k.id)]
    return sorted(matches, key=lambda k: (k.replaced, -k.created))


def rotate(current: ApiKey, fresh: str, now: float, overlap_s: float) -> tuple[ApiKey, ApiKey]:
    """Return the replacement of the current key, and the current key with its new expiry."""
    until = now + overlap_s
    ending = replace(current, replaced=True, expires=min(until, current.expires) if current.expires else until)
    return replace(current, digest=fresh, created=now), ending
