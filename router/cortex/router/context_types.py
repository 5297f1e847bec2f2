"""Saved conversations as operators see them: `/admin/contexts`. Pure."""

from collections.abc import Iterable

from msgspec import Struct

from cortex.platform.agent_messages import Stored
from cortex.platform.record import SavedContext


class ContextView(Struct, frozen=True, kw_only=True):
    """A saved conversation on a host. Whose it is, and what it says, is not shown."""

    id: str
    host: str
    function: str
    tokens: int
    size: int
    """Bytes."""
    at: float
    """When it was saved."""
    prefill_s: float
    """Seconds that a restore saves, by the worker's own counts; 0: unknown."""
    build: str


class ContextsAnswer(Struct, frozen=True, kw_only=True):
    """Saved conversations, the latest first, and the functions for which a host saves none, with the reason."""

    contexts: tuple[ContextView, ...]
    off: dict[str, dict[str, str]]
    """By host and function."""


class RemoveContextsRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The saved conversations to remove: by id, those of a function, or all; on one host, or on every one."""

    ids: tuple[str, ...] = ()
    function: str = ""
    all: bool = False
    host: str = ""


class RemoveContextsAnswer(Struct, frozen=True, kw_only=True):
    """What was removed, and the hosts that did not answer with the reason."""

    removed: tuple[ContextView, ...]
    away: dict[str, str]


KIND = "conversations"
"""The kind of their entries among the weights."""


def list_contexts(saved: Iterable[SavedContext]) -> list[Stored]:
    """Return a host's saved conversations as entries among its weights, one for each function."""
    entries: dict[str, Stored] = {}
    for c in saved:
        before = entries.get(c.function)
        size, at = (before.size, before.at) if before else (0, 0.0)
        entries[c.function] = Stored(
            name=f"{KIND}:{c.function}",
            kind=KIND,
            size=size + c.size,
            path="",
            at=max(at, c.at),
            functions=(c.function,),
        )
    return [entries[name] for name in sorted(entries)]


def view_of(context: SavedContext, host: str) -> ContextView:
    """Return what operators see of a saved conversation."""
    return ContextView(
        id=context.id,
        host=host,
        function=context.function,
        tokens=context.tokens,
        size=context.size,
        at=context.at,
        prefill_s=context.prefill_s,
        build=context.build,
    )
