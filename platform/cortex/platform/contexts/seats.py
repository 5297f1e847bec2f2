"""Which request uses which slot of a worker, and whose prompt each slot holds. Pure.

The agent alone assigns the slots of an instance whose function has `keep_context`: a conversation is then found in its
slot by whichever router process its next request reaches. A request takes a seat before it is sent and leaves it after
its answer. Its router identifies the conversation and the owner of its prompt by digests; the agent learns neither.

What is not certain counts as unknown: after a request without a seat, any slot may hold any prompt. So nothing in them
is reused across owners or saved until a seat has been taken there again.
"""

from collections.abc import Mapping

from msgspec import Struct

from cortex.platform.agent_messages import LeaveSeat, Seat, TakeSeat
from cortex.platform.fleet import Fleet

WAIT_FORGOTTEN_S = 5.0
"""A waiting request that has not been asked for again for so long is gone."""
GONE_S = 15.0
"""After this time a seat ends whose router reports no request at the instance, or does not report: its leaving was
lost. Longer than a report stays in the record."""
MOST_MARKS = 512
"""Marks of one conversation that are compared."""
MOST_SLOTS = 1024


class SlotContext(Struct, frozen=True, kw_only=True):
    """A conversation in an idle slot."""

    slot: int
    mark: str
    """Identifies the conversation. It is derived from the caller's salt and the host's name, so that no other key and
    no other host can make it."""
    tokens: int
    """Length of its last prompt."""


class _Slot:
    def __init__(self, id: int) -> None:
        self.id, self.last, self.seat = id, 0, ""
        self.owner: str | None = None
        self.mark, self.tokens = "", 0

    def forget(self) -> None:
        self.owner, self.mark, self.tokens = None, "", 0


class _Taken(Struct, frozen=True):
    """A seat that was taken, and when and by which router."""

    seat: Seat
    router: str
    at: float


class _Instance:
    def __init__(self) -> None:
        self.slots: list[_Slot] = []
        self.taken: dict[str, _Taken] = {}
        self.waiting: dict[str, float] = {}
        """Requests that wait for a slot, in order, and when they were last asked for."""
        self.unseated: dict[str, int] = {}
        self.disturbances = 0
        self.turn = 0

    @property
    def is_disturbed(self) -> bool:
        """Whether a request uses slots that are unknown."""
        return any(t.seat.slot is None for t in self.taken.values())

    def disturb(self) -> None:
        self.disturbances += 1
        for slot in self.slots:
            slot.forget()


class Seats:
    """The seats of all instances of one host. Times are by any one clock."""

    def __init__(self) -> None:
        self._instances: dict[str, _Instance] = {}

    def take(self, request: TakeSeat, now: float, fleet: Fleet | None) -> Seat | None:
        """Return the seat of a request; None: it has to wait for a slot, in the order of arrival. `fleet` has the
        routers' reports, if they can be read.

        (1) It has a seat already: the same.
        (2) It takes slots that are unknown: none is reserved, and afterwards any may hold its prompt.
        (3) A free slot whose conversation it continues.
        (4) One that was never used, else the least recently used.
        """
        instance = self._instances.setdefault(request.instance, _Instance())
        if (taken := instance.taken.get(request.id)) is not None:  # (1)
            return taken.seat
        self._note(instance, request.instance, fleet)
        if not 0 < request.slots <= MOST_SLOTS:  # (2)
            instance.disturb()
            instance.taken[request.id] = _Taken(Seat(), request.router, now)
            return Seat()
        if len(instance.slots) != request.slots:
            instance.slots = [_Slot(i) for i in range(request.slots)]
            instance.disturbances += 1
        self._end_lost(instance, request.instance, now, fleet)
        instance.waiting = {id: at for id, at in instance.waiting.items() if now - at < WAIT_FORGOTTEN_S}
        instance.waiting[request.id] = now
        free = [s for s in instance.slots if not s.seat]
        if list(instance.waiting).index(request.id) >= len(free):
            return None
        del instance.waiting[request.id]
        known = {mark: request.first + n for n, mark in enumerate(request.marks)}
        same = [s for s in free if s.owner == request.owner and s.mark in known]
        unused = next((s for s in free if not s.last), None)
        slot = max(same, key=lambda s: known[s.mark]) if same else unused or min(free, key=lambda s: s.last)
        may_reuse = slot.owner == request.owner and not instance.is_disturbed
        seat = Seat(slot=slot.id, may_reuse=may_reuse, continues=known.get(slot.mark, 0) if may_reuse else 0)
        instance.turn += 1
        slot.forget()
        slot.owner, slot.last, slot.seat = request.owner, instance.turn, request.id
        instance.taken[request.id] = _Taken(seat, request.router, now)
        return seat

    def leave(self, request: LeaveSeat) -> None:
        """End a seat. With a mark, its slot now holds that conversation. One that is not known, as after a restart of
        the agent, makes the slots unknown."""
        instance = self._instances.get(request.instance)
        if instance is None or instance.waiting.pop(request.id, None) is not None:
            return
        if request.id in instance.taken:
            self._end(instance, request.id, request.mark, request.tokens)
        else:
            instance.disturb()

    def conversations(self, instance: str, unseated: Mapping[str, int]) -> tuple[SlotContext, ...]:
        """Return the conversations in the idle slots of an instance. `unseated` counts the requests that each router
        has sent without a seat."""
        known = self._instances.get(instance)
        if known is None:
            return ()
        self._count(known, unseated)
        if known.is_disturbed:
            return ()
        return tuple(SlotContext(slot=s.id, mark=s.mark, tokens=s.tokens) for s in known.slots if s.mark and not s.seat)

    def disturbances(self, instance: str) -> int:
        """Return how often the slots of an instance have become unknown; -1: a request uses unknown ones now."""
        known = self._instances.get(instance)
        if known is None:
            return 0
        return -1 if known.is_disturbed else known.disturbances

    def forget(self, instance: str) -> None:
        """Forget an instance that has ended."""
        self._instances.pop(instance, None)

    def _note(self, instance: _Instance, id: str, fleet: Fleet | None) -> None:
        if fleet is not None:
            self._count(instance, {r.id: (r.unseated or {}).get(id, 0) for r in fleet.routers.values()})

    def _count(self, instance: _Instance, unseated: Mapping[str, int]) -> None:
        if any(number > instance.unseated.get(router, 0) for router, number in unseated.items()):
            instance.disturb()
        instance.unseated = {router: number for router, number in unseated.items() if number}

    def _end_lost(self, instance: _Instance, id: str, now: float, fleet: Fleet | None) -> None:
        """End the seats whose leaving was lost: their routers have no request at the instance."""
        if fleet is None:
            return
        for seat, taken in list(instance.taken.items()):
            report = fleet.routers.get(taken.router)
            if now - taken.at > GONE_S and (report is None or not report.in_flight.get(id)):
                self._end(instance, seat, "", 0)

    def _end(self, instance: _Instance, id: str, mark: str, tokens: int) -> None:
        taken = instance.taken.pop(id, None)
        if taken is None:
            return
        if taken.seat.slot is None:
            instance.disturb()
            return
        for slot in instance.slots:
            if slot.seat == id:
                slot.seat = ""
                if slot.owner is not None and mark:
                    slot.mark, slot.tokens = mark, tokens
