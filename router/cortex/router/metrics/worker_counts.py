"""Metrics of a router's worker processes, exchanged through files in one folder and summed by the metrics server.

Each worker writes its own file once a second and when it exits. The counters of workers that have exited are merged
into one file, so that restarts do not accumulate files; their gauges are dropped.
"""

import contextlib
from pathlib import Path

import msgspec
from msgspec import Struct

from cortex.platform.meter import Snapshot, add_up
from cortex.platform.process import process_id
from cortex.platform.record import ProcessId

DEPARTED = "departed.json"


class _Counts(Struct, frozen=True):
    """The metrics of one process."""

    process: ProcessId
    snapshot: Snapshot


class CountsFile:
    """The file with this process's metrics."""

    def __init__(self, folder: Path) -> None:
        self._process = process_id.own()
        self._path = folder / f"{self._process.pid}.json"
        self._last = b""

    def write(self, snapshot: Snapshot) -> None:
        """Write the file if the snapshot changed. A full disk costs metrics, not requests."""
        raw = msgspec.json.encode(_Counts(self._process, snapshot))
        if raw != self._last:
            with contextlib.suppress(OSError):
                _replace(self._path, raw)
                self._last = raw


def prepare(folder: Path) -> None:
    """Create the folder of a starting router and delete an earlier router's files. Raises OSError.

    While workers of the earlier router still finish requests, the files stay and counting continues from them.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths = list(folder.glob("*.json"))
    if any(_alive(counts) for path in paths if path.name != DEPARTED and (counts := _read(path))):
        return
    for path in paths:
        path.unlink(missing_ok=True)


def collect(folder: Path) -> Snapshot:
    """Return the sum over all workers, including exited ones. Only one process at a time may call it."""
    departed = _read(folder / DEPARTED)
    parts: list[Snapshot] = []
    stale: list[Path] = []
    exited = [departed.snapshot] if departed else []
    for path in sorted(folder.glob("*.json")):
        counts = _read(path) if path.name != DEPARTED else None
        if counts is None:
            continue
        if _alive(counts):
            parts.append(counts.snapshot)
        else:
            stale.append(path)
            exited.append(msgspec.structs.replace(counts.snapshot, gauges=()))
    past = add_up(exited)
    if stale:
        with contextlib.suppress(OSError):  # a full disk: the files stay until the next call
            _replace(folder / DEPARTED, msgspec.json.encode(_Counts(ProcessId("", 0, 0), past)))
            for path in stale:
                path.unlink(missing_ok=True)
    return add_up([past, *parts])


def _alive(counts: _Counts) -> bool:
    return process_id.is_alive(counts.process)


def _read(path: Path) -> _Counts | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Counts)
    except (OSError, msgspec.MsgspecError):
        return None


def _replace(path: Path, raw: bytes) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_bytes(raw)
    temporary.replace(path)
