"""What the worker processes of one router have counted, left in a folder and added up by whoever serves it.

Each worker writes a file of its own, once a second and when it ends. Its counts stay when it is gone, folded into
one file so that workers that die again and again leave no trail; its gauges go with it.
"""

import contextlib
from pathlib import Path

import msgspec
from msgspec import Struct

from cortex.platform import process_id
from cortex.platform.meter import Snapshot, added
from cortex.platform.record import ProcessId

DEPARTED = "departed.json"


class _Written(Struct, frozen=True):
    """One process's counts, and whose they are."""

    process: ProcessId
    snapshot: Snapshot


class Tally:
    """What this process counted, as a file."""

    def __init__(self, folder: Path) -> None:
        self._process = process_id.own()
        self._path = folder / f"{self._process.pid}.json"
        self._last = b""

    def write(self, snapshot: Snapshot) -> None:
        """Write it, if it says something new. A full disk costs metrics, not requests."""
        raw = msgspec.json.encode(_Written(self._process, snapshot))
        if raw != self._last:
            with contextlib.suppress(OSError):
                _replace(self._path, raw)
                self._last = raw


def begin(folder: Path) -> None:
    """Make the folder of a router that starts, without what an earlier one left. Raises OSError.

    While workers of that one still finish what they hold, its counts go on instead: theirs are among them.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    left = list(folder.glob("*.json"))
    if any(_alive(tally) for path in left if path.name != DEPARTED and (tally := _read(path))):
        return
    for path in left:
        path.unlink(missing_ok=True)


def gathered(folder: Path) -> Snapshot:
    """Return what all workers counted, those that are gone included. One process at a time may do this."""
    departed = _read(folder / DEPARTED)
    parts: list[Snapshot] = []
    gone: list[Path] = []
    left = [departed.snapshot] if departed else []
    for path in sorted(folder.glob("*.json")):
        tally = _read(path) if path.name != DEPARTED else None
        if tally is None:
            continue
        if _alive(tally):
            parts.append(tally.snapshot)
        else:
            gone.append(path)
            left.append(msgspec.structs.replace(tally.snapshot, gauges=()))
    past = added(left)
    if gone:
        with contextlib.suppress(OSError):  # a full disk: they stay as they are until the next look
            _replace(folder / DEPARTED, msgspec.json.encode(_Written(ProcessId("", 0, 0), past)))
            for path in gone:
                path.unlink(missing_ok=True)
    return added([past, *parts])


def _alive(tally: _Written) -> bool:
    return process_id.is_alive(tally.process)


def _read(path: Path) -> _Written | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Written)
    except (OSError, msgspec.MsgspecError):
        return None


def _replace(path: Path, raw: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(raw)
    fresh.replace(path)
