"""The process that calls NVML."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from cortex.platform.host.nvml import Answer
from cortex.platform.host.nvml_reader import READER
from tests.platform.host.nvml_stub import CPU, SILENT, Tell, count_children, devices, ids, kill_and_wait, read


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("read line; echo rubbish; exec cat", "sent an invalid answer"),
        ("read line; echo '{\"gpus\": 3}'; exec cat", "sent an invalid answer"),
        ("read line; exec head -c 5000000 /dev/zero", "sent an invalid answer"),
        ("read line; exit 3", "the NVML reader exited with code 3"),
        ("read line; printf unfinished", "the NVML reader exited with code 0"),
        ("exec <&- >&-; sleep 1000", "the NVML reader was killed by SIGKILL"),
    ],
)
async def test_a_reader_that_does_not_answer_properly_is_a_problem(script: str, problem: str) -> None:
    reading = await read(command=("/bin/sh", "-c", script))

    assert ids(reading) == (CPU,)
    assert problem in reading.problem


async def test_a_reader_that_cannot_be_started_is_a_problem() -> None:
    reading = await read(command=("/nonexistent",))

    assert ids(reading) == (CPU,)
    assert "could not be started" in reading.problem


async def test_after_a_failure_the_next_attempt_waits_longer_each_time(tmp_path: Path) -> None:
    now, starts = [0.0], tmp_path / "starts"
    script = f"echo >>{starts}; read line; exit 1"
    times = []
    async with devices(command=("/bin/sh", "-c", script), retry_s=1, clock=lambda: now[0]) as opened:
        for second in range(16):
            now[0] = second
            before = starts.stat().st_size if starts.exists() else 0
            reading = await opened.read()
            assert reading.problem == "the NVML reader exited with code 1"
            if starts.stat().st_size > before:
                times.append(second)

    assert times == [0, 1, 3, 7, 15]


async def test_a_library_that_is_not_installed_is_looked_for_once_a_minute(tmp_path: Path) -> None:
    now, starts = [0.0], tmp_path / "starts"
    answer = msgspec.json.encode(Answer(error="no library", absent=True)).decode()
    script = f"echo >>{starts}; read line; echo '{answer}'; exec cat >/dev/null"
    counts = []
    async with devices(command=("/bin/sh", "-c", script), retry_s=1, clock=lambda: now[0]) as opened:
        for now[0] in (0.0, 1.0, 59.0, 60.0):
            assert (await opened.read()).absent
            counts.append(starts.stat().st_size)

    assert counts == [1, 1, 1, 2]


async def test_the_first_answer_has_a_longer_time_limit(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    answer = msgspec.json.encode(Answer(driver="1")).decode()
    script = f"read line; read go <{gate}; echo '{answer}'; exec cat >/dev/null"
    async with devices(command=("/bin/sh", "-c", script), timeout_s=0.05, first_s=1000) as opened:
        early = await opened.read()
        await asyncio.to_thread(gate.write_text, "go\n")
        reading = await opened.read()
        while reading.problem:
            reading = await opened.read()

    assert early.problem == "NVML has not answered yet"
    assert reading.driver == "1"


async def test_there_is_never_a_second_reader_while_a_killed_one_has_not_ended() -> None:
    spared: list[int] = []

    def spare(pid: int, number: signal.Signals) -> None:
        spared.append(pid)

    async with devices(command=SILENT, timeout_s=0.05, first_s=0.05, retry_s=0, kill=spare) as opened:
        await opened.read()
        reading = await opened.read()
        assert reading.problem == f"the NVML reader (pid {spared[0]}) was killed and has not exited"
        assert count_children() == 1
        await kill_and_wait(spared[0])
        while "has not exited" in reading.problem:  # asyncio reports the exit later
            await asyncio.sleep(0)
            reading = await opened.read()

    assert reading.problem == "NVML does not answer; its reader was killed"
    assert len(spared) == 2
    await kill_and_wait(spared[1])


async def test_a_read_that_is_cancelled_leaves_the_next_one_its_answer(tmp_path: Path) -> None:
    answer = msgspec.json.encode(Answer(driver="1")).decode()
    script = f"n=0; while read line; do n=$((n+1)); echo '{answer}' | sed s/1/$n/; done"
    async with devices(command=("/bin/sh", "-c", script)) as opened:
        given_up = asyncio.create_task(opened.read())
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)

        first, second = await opened.read(), await opened.read()

    assert (first.driver, second.driver) == ("1", "2")


async def test_a_hung_nvml_does_not_block_the_event_loop() -> None:
    async with devices(command=SILENT, timeout_s=0.2, first_s=0.2) as opened:
        reading = asyncio.create_task(opened.read())
        turns = 0
        while not reading.done():
            await asyncio.sleep(0)
            turns += 1

    assert turns > 100


async def test_closing_leaves_no_process_behind(nvml: Tell) -> None:
    async with devices() as opened:
        await opened.read()
        assert count_children() == 1

    assert count_children() == 0


def test_the_reader_ends_with_its_standard_input(nvml: Tell) -> None:
    with subprocess.Popen(READER, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        answer, _ = reader.communicate(b"read\nwhat?\nread\n", timeout=10)

    assert reader.returncode == 0
    assert [len(msgspec.json.decode(line, type=Answer).gpus) for line in answer.splitlines()] == [2, 2]


def test_a_hung_reader_ends_with_its_parent(nvml: Tell) -> None:
    nvml("hang nvmlDeviceGetName", "print nvmlInitWithFlags")
    parent = (
        "import subprocess, sys, time\n"
        f"reader = subprocess.Popen({READER!r}, stdin=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "reader.stdin.write(b'read\\n'); reader.stdin.flush()\n"
        "reader.stderr.readline()\n"  # what the stub prints: it is now on its way into the call that hangs
        "print(reader.pid, flush=True); time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        reader = os.pidfd_open(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)

    readable, _, _ = select.select([reader], [], [], 10)
    os.close(reader)
    assert readable


def test_the_reader_never_loads_cuda(nvml: Tell) -> None:
    with subprocess.Popen(READER, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        reader.stdin.write(b"read\n")
        reader.stdin.flush()
        reader.stdout.readline()
        maps = Path(f"/proc/{reader.pid}/maps").read_text()
        reader.stdin.close()

    assert "libnvidia-ml" in maps
    assert "libcuda" not in maps
