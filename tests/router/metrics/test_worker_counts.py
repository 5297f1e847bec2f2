"""Counts of several worker processes, some of which have exited."""

import os
import subprocess
import sys
from pathlib import Path

from cortex.platform import metrics
from cortex.platform.meter import Count, Meter, Snapshot
from cortex.router.metrics.worker_counts import DEPARTED, CountsFile, collect, prepare

WRITE = """
import sys
from pathlib import Path
from cortex.platform import metrics
from cortex.platform.meter import Count, Meter
from cortex.router.metrics.worker_counts import CountsFile
meter = Meter()
meter.count(metrics.REPLAYS, ("m", "n"), 5)
CountsFile(Path(sys.argv[1])).write(meter.snapshot([Count(metrics.PROCESSES.name, (), 1)]))
"""


def values(snapshot: Snapshot) -> dict[str, float]:
    return {c.name: c.value for c in (*snapshot.counts, *snapshot.gauges)}


def run_a_worker(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", WRITE, str(folder)], check=True, timeout=30)


def test_an_exited_worker_keeps_its_counters_and_loses_its_gauges(tmp_path: Path) -> None:
    run_a_worker(tmp_path)
    meter = Meter()
    meter.count(metrics.REPLAYS, ("m", "n"), 2)
    CountsFile(tmp_path).write(meter.snapshot([Count(metrics.PROCESSES.name, (), 1)]))

    first, again = collect(tmp_path), collect(tmp_path)

    assert values(first) == values(again) == {metrics.REPLAYS.name: 7, metrics.PROCESSES.name: 1}


def test_repeated_worker_exits_leave_one_file(tmp_path: Path) -> None:
    for _ in range(2):
        run_a_worker(tmp_path)
        collect(tmp_path)

    assert [p.name for p in tmp_path.iterdir()] == [DEPARTED]
    assert values(collect(tmp_path)) == {metrics.REPLAYS.name: 10}


def test_a_file_of_a_reused_process_id_is_not_a_live_worker(tmp_path: Path) -> None:
    CountsFile(tmp_path).write(Snapshot(gauges=(Count(metrics.PROCESSES.name, (), 1),)))
    path = tmp_path / f"{os.getpid()}.json"
    path.write_text(path.read_text().replace('"ticks":', '"ticks":1,"was":'))

    assert values(collect(tmp_path)) == {}


def test_a_starting_router_counts_from_zero(tmp_path: Path) -> None:
    run_a_worker(tmp_path)
    collect(tmp_path)
    run_a_worker(tmp_path)

    prepare(tmp_path)

    assert values(collect(tmp_path)) == {}


def test_counting_continues_while_a_worker_of_the_earlier_router_runs(tmp_path: Path) -> None:
    run_a_worker(tmp_path)
    CountsFile(tmp_path).write(Snapshot(gauges=(Count(metrics.PROCESSES.name, (), 1),)))

    prepare(tmp_path)

    assert values(collect(tmp_path)) == {metrics.REPLAYS.name: 5, metrics.PROCESSES.name: 1}
