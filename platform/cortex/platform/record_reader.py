"""Reading the record: converts times to the reader's clock, and discards values older than those already read.

Clocks of different machines are never compared directly. A host's record has the time of writing by its agent's clock;
the smallest difference to the time of reading is the offset of the two clocks. Last uses are scores by Redis' clock
and come with Redis' time, which gives their age.

Reads overlap: a slow read of everything may end after a quick read of one host that fetched a newer value.
`RecordReader` never returns a host's record that is older than the previous one. Pure: times are arguments, all by the
reader's own monotonic clock.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from cortex.platform.fleet import is_newer, shift
from cortex.platform.record import HostRecord, RouterReport
from cortex.platform.record_codec import Beat

WINDOW_S = 30.0
"""The offset is the smallest difference in one to two windows: clocks drift, and a machine may be suspended."""

SAME_S = 0.2
"""Smaller changes of an offset are ignored, so that a host's times do not move at every read."""

GONE_S = 600.0
"""How long a host or a last use is remembered after it has disappeared from Redis, which may have been emptied."""

MOST_USES = 50_000


class ClockDifference:
    """How far a reader's clock is ahead of the clock of one agent process."""

    def __init__(self, written: float, read: float) -> None:
        """`written` is a record's time by the agent's clock, `read` its arrival by the reader's."""
        self.ahead_s = self._smallest = self._before = read - written
        self._window_from, self._written = read, written

    def note(self, written: float, read: float) -> None:
        """Take another record into account. Reading the same record again adds nothing."""
        if written == self._written:
            return
        self._written, difference = written, read - written
        if read - self._window_from > WINDOW_S:
            self._before, self._smallest, self._window_from = self._smallest, difference, read
        self._smallest = min(self._smallest, difference)
        ahead_s = min(self._smallest, self._before)
        if abs(ahead_s - self.ahead_s) > SAME_S:
            self.ahead_s = ahead_s


class _Host(Struct):
    """The newest record of one host, and whether Redis still has it."""

    written: HostRecord
    """As written, by the agent's clock."""
    present: bool
    since: float
    """When the reader learned that."""
    clocks: ClockDifference
    record: HostRecord
    """With its times by the reader's clock."""


class RecordReader:
    """The newest records of hosts and last uses that a process has read. One per process."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Host] = {}
        self._used: dict[str, float] = {}
        self._reports: dict[str, tuple[float, float]] = {}
        """By router, the time that its newest report tells, and when this process first read that."""

    def hosts(self, read: Iterable[HostRecord], began: float, ended: float) -> dict[str, HostRecord]:
        """Add a read of all hosts, which lasted from `began` to `ended`. Return the newest record of each."""
        records = {h.name: h for h in read}
        self._hosts = {n: h for n, h in self._hosts.items() if h.present or n in records or ended - h.since < GONE_S}
        newest = {
            name: self.host(name, records.get(name), began, ended)
            for name in (*records, *(self._hosts.keys() - records.keys()))
        }
        return {name: record for name, record in newest.items() if record is not None}

    def host(self, name: str, read: HostRecord | None, began: float, ended: float) -> HostRecord | None:
        """Add a read of one host; None: Redis does not have it. Return its newest record, or None."""
        host = self._hosts.get(name)
        if host is None:
            if read is None:
                return None
            host = self._hosts[name] = self._entry(None, read, ended)
            return host.record
        overlapped = began < host.since
        if read is None:
            if host.present and not overlapped:
                host.present, host.since = False, ended
        elif is_newer(read, host.written, overlapped=overlapped):
            host = self._hosts[name] = self._entry(host, read, ended)
        elif not host.present and not overlapped:
            host.present, host.since = True, ended
        return host.record if host.present else None

    def after(self, beat: Beat, received: float) -> HostRecord | None:
        """Return a host's newest record after a heartbeat; None: this process does not have what it is a heartbeat
        of."""
        host = self._hosts.get(beat.host)
        if host is None or not beat.change or host.written.change != beat.change:
            return None
        return self.host(beat.host, replace(host.written, at=beat.at, sequence=beat.sequence), received, received)

    @staticmethod
    def _entry(previous: _Host | None, read: HostRecord, ended: float) -> _Host:
        if previous is not None and previous.written.agent == read.agent:
            clocks = previous.clocks
            clocks.note(read.at, ended)
        else:
            clocks = ClockDifference(read.at, ended)
        return _Host(read, True, ended, clocks, shift(read, clocks.ahead_s))

    def reports(self, read: Iterable[RouterReport], ended: float, lifetime_s: float) -> dict[str, RouterReport]:
        """Add a read of all routers' reports. Return those of routers that have written one within a lifetime.

        Redis keeps the report of a router that died for longer when its own clock is set back. So here a report that
        stays the same counts for a lifetime from the first read of it.
        """
        reports = {r.id: r for r in read}
        before = self._reports
        self._reports = {
            id: before[id] if id in before and before[id][0] == report.at else (report.at, ended)
            for id, report in reports.items()
        }
        return {id: report for id, report in reports.items() if ended - self._reports[id][1] < lifetime_s}

    def last_uses(self, scores: Mapping[str, float], redis_now: float, now: float) -> dict[str, float]:
        """Return last uses by the reader's clock, from scores and the time by Redis' clock.

        A use never gets older than in an earlier read, so a forward step of Redis' clock makes nothing look idle. After
        a backward step, scores may lie in Redis' future: such a use keeps its earlier time, or counts as now.
        """
        newest = {m: at for m, at in self._used.items() if m not in scores and now - at < GONE_S}
        for member, score in scores.items():
            previous = self._used.get(member)
            if score > redis_now:
                newest[member] = now if previous is None else previous
            else:
                newest[member] = max(now - (redis_now - score), previous or 0.0)
        if len(newest) > MOST_USES:
            newest = dict(sorted(newest.items(), key=lambda item: -item[1])[:MOST_USES])
        self._used = newest
        return dict(newest)
