"""What reading ahead is worth: a start with it and one without, in the same run (`just bench-readahead`).

The engine is a Python that computes for as long as an import takes, and then touches every page of its weights through
a mapping, as safetensors are read. Before each start the file is dropped from the page cache; the order of the two
kinds alternates. `python -m tests.bench_readahead [--mb N] [--import-s S] [--rounds N] [--folder DIR]`.
"""

import argparse
import asyncio
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from cortex.platform.workers.readahead import read_ahead
from tests.support import program

MIB = 1024 * 1024
ENGINE = """
import mmap, sys, time
path, import_s = sys.argv[1], float(sys.argv[2])
began = time.process_time()
while time.process_time() - began < import_s:
    sum(range(10_000))
began = time.monotonic()
with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as weights:
    sum(weights[at] for at in range(0, len(weights), mmap.PAGESIZE))
print(time.monotonic() - began)
"""


def main() -> None:
    """Run it and print a line for each kind."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mb", type=int, default=1024, help="size of the weights")
    parser.add_argument("--import-s", type=float, default=5.0, help="CPU seconds the engine imports for")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to put the weights: on the disk to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cortex-readahead-", dir=options.folder) as folder:
        weights = Path(folder) / "model.safetensors"
        with weights.open("wb") as file:
            for _ in range(options.mb):
                file.write(os.urandom(MIB))
        took: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
        for nth in range(options.rounds):
            for ahead in (nth % 2 == 0, nth % 2 == 1):
                took[ahead].append(asyncio.run(_start(weights, options.import_s, ahead=ahead)))
    print(f"{options.mb} MiB, imports of {options.import_s:g} s of CPU, {options.rounds} rounds, medians")
    for ahead, name in ((False, "as it comes"), (True, "read ahead")):
        start, reading, ours = (median(values) for values in zip(*took[ahead], strict=True))
        print(f"{name:12} start {start:6.2f} s, of it reading {reading:6.2f} s; the agent's CPU {ours:.2f} s")


async def _start(weights: Path, import_s: float, *, ahead: bool) -> tuple[float, float, float]:
    """Return how long a start took, how long of it the weights, and the CPU time spent on reading ahead."""
    with weights.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began, used = time.monotonic(), _cpu_s()
    engine = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ENGINE, weights, str(import_s), stdout=asyncio.subprocess.PIPE
    )
    if ahead:
        await read_ahead(weights, lambda: engine.returncode is None)
    output, _ = await engine.communicate()
    return time.monotonic() - began, float(output), _cpu_s() - used


def _cpu_s() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime


if __name__ == "__main__":
    sys.exit(program.run(main))
