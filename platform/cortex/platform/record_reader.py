"""What a process makes of the record it reads: times by its own clock, and nothing older than what it has read before.

Every machine has a clock of its own, and so has Redis; none is compared with another. A host's record says when it
was written, by its agent's clock: the smallest difference between that and the time at which it was read is how far
the two clocks are apart. Last uses are scores by Redis' clock, and Redis says its time with them: an age.

Reads overlap: a slow read of everything may end after a quick one of a single host that fetched a newer value.
`RecordReader` never hands out a host's record that is older than the one before. Pure: times are arguments, all by
the reader's own steady clock.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct

from cortex.platform.record import HostRecord, is_newer, shifted

WINDOW_S = 30.0
"""A difference of clocks is the smallest seen in one to two of these: clocks drift, and a machine may be suspended."""

SAME_S = 0.05
"""A difference that changes by less stays as it is, so that a host's times do not move at every reading."""

GONE_S = 600.0
"""How long a host that is gone is remembered, and a last use that is in Redis no more, which may have been emptied."""

MOST_USES = 50_000


class ClockDifference:
    """How much a reader's clock is ahead of the clock that one agent process writes its records by."""

    def __init__(self, written: float, read: float) -> None:
        """A record of that process, `written` by its clock, was there at `read` by the reader's."""
        self.ahead_s = self._smallest = self._before = read - written
        self._window_from, self._written = read, written

    def note(self, written: float, read: float) -> None:
        """Take one more record into account. Reading the same record again says nothing new."""
        if written == self._written:
            return
        self._written, apart = written, read - written
        if read - self._window_from > WINDOW_S:
            self._before, self._smallest, self._window_from = self._smallest, apart, read
        self._smallest = min(self._smallest, apart)
        ahead_s = min(self._smallest, self._before)
        if abs(ahead_s - self.ahead_s) > SAME_S:
            self.ahead_s = ahead_s


class _Host(Struct):
    """The newest that is known of one host: its record as written, and whether Redis has it."""

    written: HostRecord
    there: bool
    since: float
    """When that came to be known."""
    clocks: ClockDifference
    record: HostRecord
    """The record with its times by the reader's clock."""


class RecordReader:
    """The newest a process knows of hosts and last uses. One per process."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}
        self._used: dict[str, float] = {}

    def hosts(self, read: Iterable[HostRecord], began: float, ended: float) -> dict[str, HostRecord]:
        """Take in a read of all hosts, which lasted from `began` to `ended`. Return the newest of each."""
        found = {h.name: h for h in read}
        self._hosts = {n: h for n, h in self._hosts.items() if h.there or n in found or ended - h.since < GONE_S}
        newest = {
            name: self.host(name, found.get(name), began, ended)
            for name in (*found, *(self._hosts.keys() - found.keys()))
        }
        return {name: record for name, record in newest.items() if record is not None}

    def host(self, name: str, read: HostRecord | None, began: float, ended: float) -> HostRecord | None:
        """Take in a read of one host; None: it is not in Redis. Return the newest, None when it is gone."""
        known = self._hosts.get(name)
        if known is None:
            if read is None:
                return None
            known = self._hosts[name] = self._entered(None, read, ended)
            return known.record
        overlapped = began < known.since
        if read is None:
            if known.there and not overlapped:
                known.there, known.since = False, ended
        elif is_newer(read, known.written, overlapped=overlapped):
            known = self._hosts[name] = self._entered(known, read, ended)
        elif not known.there and not overlapped:
            known.there, known.since = True, ended
        return known.record if known.there else None

    @staticmethod
    def _entered(known: _Host | None, read: HostRecord, ended: float) -> _Host:
        if known is not None and known.written.agent == read.agent:
            clocks = known.clocks
            clocks.note(read.at, ended)
        else:
            clocks = ClockDifference(read.at, ended)
        return _Host(read, True, ended, clocks, shifted(read, clocks.ahead_s))

    def used(self, scores: Mapping[str, float], redis_now: float, now: float) -> dict[str, float]:
        """Return last uses by the reader's clock, from scores and a time of Redis' clock.

        Never older than read before: a step of Redis' clock forwards makes nothing look idle. After a step backwards
        scores lie in Redis' future: such a use stays as it was known, or counts as now.
        """
        newest = {m: at for m, at in self._used.items() if m not in scores and now - at < GONE_S}
        for member, score in scores.items():
            known = self._used.get(member)
            if score > redis_now:
                newest[member] = now if known is None else known
            else:
                newest[member] = max(now - (redis_now - score), known or 0.0)
        if len(newest) > MOST_USES:
            newest = dict(sorted(newest.items(), key=lambda one: -one[1])[:MOST_USES])
        self._used = newest
        return dict(newest)
