"""Replays the exported events of a host: `uv run python -m tests.support.replay FILE`."""

import sys
from collections.abc import Iterable
from pathlib import Path

from cortex.platform.scheduling.event_log import Checkpoint, Entry, read
from cortex.platform.scheduling.scheduler import Scheduler


def differences(lines: Iterable[bytes | str]) -> list[str]:
    """Return where a replay decides otherwise than the agent did; raises ValueError when there is no checkpoint."""
    places: list[str] = []
    scheduler: Scheduler | None = None
    for number, line in enumerate(read(lines), 1):
        if isinstance(line, Checkpoint):
            if scheduler is None:
                scheduler = Scheduler(line.state.host, line.state.rules)
                scheduler.state = line.state
            elif scheduler.state != line.state:
                places.append(f"line {number}: the state is {scheduler.state}, and was {line.state}")
        elif scheduler is None:
            raise ValueError(f"line {number}: an event without a state before it")
        elif (replayed := _replayed(scheduler, line)) != (line.effects, line.raised):
            places.append(f"line {number}: the effects are {replayed}, and were {line.effects} {line.raised}")
    if scheduler is None:
        raise ValueError("there is no checkpoint")
    return places


def _replayed(scheduler: Scheduler, entry: Entry) -> tuple[object, str]:
    try:
        return tuple(scheduler.handle(entry.event, entry.now)), ""
    except Exception as error:
        return tuple(scheduler.take_effects()), type(error).__name__


if __name__ == "__main__":
    for difference in differences(Path(sys.argv[1]).read_bytes().splitlines()):
        print(difference)
