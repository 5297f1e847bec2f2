"""Counts of several worker processes, of which some are gone."""

import os
import subprocess
import sys
from pathlib import Path

from cortex.platform import metrics
from cortex.platform.meter import Count, Meter, Snapshot
from cortex.router.metrics.worker_counts import DEPARTED, Tally, begin, gathered

WRITE = """
import sys
from pathlib import Path
from cortex.platform import metrics
from cortex.platform.meter import Count, Meter
from cortex.router.metrics.worker_counts import Tally
meter = Meter()
meter.count(metrics.REPLAYS, ("m", "n"), 5)
Tally(Path(sys.argv[1])).write(meter.snapshot([Count(metrics.PROCESSES.name, (), 1)]))
"""


def values(snapshot: Snapshot) -> dict[str, float]:
    return {c.name: c.value for c in (*snapshot.counts, *snapshot.gauges)}


def a_process_that_ends(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", WRITE, str(folder)], check=True, timeout=30)


def test_a_worker_that_is_gone_leaves_its_counts_and_takes_its_gauges_along(tmp_path: Path) -> None:
    a_process_that_ends(tmp_path)
    meter = Meter()
    meter.count(metrics.REPLAYS, ("m", "n"), 2)
    Tally(tmp_path).write(meter.snapshot([Count(metrics.PROCESSES.name, (), 1)]))

    first, again = gathered(tmp_path), gathered(tmp_path)

    assert values(first) == values(again) == {metrics.REPLAYS.name: 7, metrics.PROCESSES.name: 1}


def test_workers_that_die_again_and_again_leave_no_trail(tmp_path: Path) -> None:
    for _ in range(2):
        a_process_that_ends(tmp_path)
        gathered(tmp_path)

    assert [p.name for p in tmp_path.iterdir()] == [DEPARTED]
    assert values(gathered(tmp_path)) == {metrics.REPLAYS.name: 10}


def test_a_file_of_a_process_id_that_was_given_away_again_is_no_live_worker(tmp_path: Path) -> None:
    Tally(tmp_path).write(Snapshot(gauges=(Count(metrics.PROCESSES.name, (), 1),)))
    path = tmp_path / f"{os.getpid()}.json"
    path.write_text(path.read_text().replace('"ticks":', '"ticks":1,"was":'))

    assert values(gathered(tmp_path)) == {}


def test_a_router_that_starts_counts_from_nothing(tmp_path: Path) -> None:
    a_process_that_ends(tmp_path)
    gathered(tmp_path)
    a_process_that_ends(tmp_path)

    begin(tmp_path)

    assert values(gathered(tmp_path)) == {}


def test_counts_go_on_while_a_process_of_the_router_before_still_finishes(tmp_path: Path) -> None:
    a_process_that_ends(tmp_path)
    Tally(tmp_path).write(Snapshot(gauges=(Count(metrics.PROCESSES.name, (), 1),)))

    begin(tmp_path)

    assert values(gathered(tmp_path)) == {metrics.REPLAYS.name: 5, metrics.PROCESSES.name: 1}
