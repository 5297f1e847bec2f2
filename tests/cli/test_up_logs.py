"""`cortex up` bounds the logs of its programs."""

import asyncio
from pathlib import Path

from cortex.cli.up import Child, bound_logs
from cortex.platform.workers.log_files import earlier_part
from tests.support.until import until


async def test_a_log_above_the_limit_is_cut_and_its_writer_continues(tmp_path: Path) -> None:
    child = Child("router", [], {}, tmp_path / "router.log", 0)
    with child.log.open("ab", buffering=0) as writer:
        writer.write(b"x" * 1000)
        bounding = asyncio.create_task(bound_logs([child], most_bytes=1000, check_s=0.001))
        await asyncio.sleep(0)
        writer.write(b"y")
        await until(lambda: not child.log.stat().st_size)
        writer.write(b"on")
        bounding.cancel()

    assert child.log.read_bytes() == b"on"
    assert earlier_part(child.log).read_bytes() == b"x" * 1000 + b"y"


async def test_a_missing_log_is_ignored(tmp_path: Path) -> None:
    child = Child("router", [], {}, tmp_path / "router.log", 0)

    bounding = asyncio.create_task(bound_logs([child], check_s=0.001))
    done, _ = await asyncio.wait([bounding], timeout=0.05)
    bounding.cancel()

    assert not done
