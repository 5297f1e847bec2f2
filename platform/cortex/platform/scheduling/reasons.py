"""Kinds of decisions, reasons of drains in groups, and the text for people that is made of a reason. Pure."""

import enum
from collections.abc import Iterable

from cortex.functions.lifecycle import State
from cortex.platform.record import DrainReason


class DecisionKind(enum.StrEnum):
    """What an agent decided: `what` in its `DecisionRecord`, and a label of `cortex_decisions_total`."""

    ADOPTED = "adopted"
    PLACED = "placed"
    MOVED = "moved"
    READY = "ready"
    REFUSED = "refused"
    TURN = "turn"
    EVICTED = "evicted"
    CLOSED = "closed"
    """An instance in use gets no new requests: the turn of another function has come."""
    PARKED = "parked"
    PARK_FAILED = "park_failed"
    TRICK_FAILED = "trick_failed"
    """A trick of a start, or the full start after a fast one, is not tried again."""
    ADAPTER_LOADED = "adapter_loaded"
    ADAPTER_FAILED = "adapter_failed"
    CONTEXT_SAVED = "context_saved"
    """Conversations were saved before their instance left."""
    CONTEXT_RESTORED = "context_restored"
    CONTEXT_UNUSED = "context_unused"
    """Conversations were not saved, or one was not restored."""
    CONTEXT_OFF = "context_off"
    """A restored conversation saved no tokens: for its build and model none is saved any more."""
    UPGRADING = "upgrading"
    """A full start is to replace an instance that was started fast."""
    DRAINING = "draining"
    DRAIN_CANCELLED = "drain_cancelled"
    ABANDONED = "abandoned"
    STOPPED = "stopped"
    EXITED = "exited"
    FAILED = "failed"
    OVERDUE = "overdue"


STAYS_DRAINED = frozenset({DrainReason.COOL, DrainReason.HOST_DRAIN})
"""Reasons by which no request for the function cancels a drain."""

FOR_ROOM = frozenset({DrainReason.EVICTED, DrainReason.TURN})
"""Reasons by which an instance leaves so that another fits."""

FOR_LATER = frozenset({DrainReason.IDLE, DrainReason.REHEARSAL, DrainReason.UPGRADED})
"""Reasons that end as soon as a request is in flight."""

MAY_PARK = FOR_ROOM | {DrainReason.IDLE, DrainReason.REHEARSAL, DrainReason.COOL}
"""Reasons by which an instance may keep its process. By the others it is not to return."""


MOST_NAMED = 3
"""Functions that the reason for a refusal names."""


class Protection(enum.StrEnum):
    """Why an instance may not be evicted, where that is not its state."""

    PINNED = "pinned"
    BUSY = "busy"
    JUST_LOADED = "just loaded"
    JUST_USED = "just used"
    HIGHER_PRIORITY = "of a higher priority"
    USE_UNKNOWN = "maybe in use"
    """No router says who is in use."""


def protection_text(protected: Iterable[tuple[str, Protection | State | None]]) -> str:
    """Return why instances of these functions stay, each function once for each reason."""
    each = sorted({(function, str(why)) for function, why in protected if why})
    named = [f"{function} is {why}" for function, why in each[:MOST_NAMED]]
    more = f" and {len(each) - MOST_NAMED} more stay" if len(each) > MOST_NAMED else ""
    return ", ".join(named) + more


def drain_text(reason: DrainReason, detail: str = "") -> str:
    """Return a reason as text: `detail` is the function that needs the room, or the devices it moves to."""
    match reason:
        case DrainReason.EVICTED:
            return f"evicted for {detail}"
        case DrainReason.TURN:
            return f"closed for the turn of {detail}"
        case DrainReason.MOVED:
            return f"moved to {detail}"
        case DrainReason.UPGRADED:
            return f"replaced by {detail}, a full start" if detail else "to be started in full"
        case _:
            return str(reason)
