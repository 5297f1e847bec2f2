"""The process: reads the command line and the environment, then serves until it is told to stop.

The heavy import comes late and cheaply, because a fake that starts slowly makes every scheduler test slow.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from cortex.platform.fake_engine.options import Place, parse
from cortex.platform.fake_engine.orphans import leave_daemon, leave_grandchild
from cortex.platform.fake_engine.script import BadScript, Script

KEY_VARIABLE = "CORTEX_WORKER_KEY"
MEMORY_VARIABLE = "CORTEX_FAKE_MEMORY_FILE"
CLOSING_S = 0.01  # aiohttp takes 0 for "for ever"


def main() -> None:
    """Become a worker."""
    place, script = parse()
    # A handler, not SIG_IGN: that would be inherited by what it leaves behind.
    signal.signal(signal.SIGTERM, lambda *_: None if script.ignore_term else os._exit(0))
    left_behind = {}
    if place.leave_grandchild:
        left_behind["grandchild"] = leave_grandchild(hold_stdout=place.hold_stdout)
    if place.leave_daemon:
        left_behind["daemon"] = leave_daemon(hold_stdout=place.hold_stdout)
    _import_aiohttp_without_certificates()
    try:
        asyncio.run(_serve(place, script, left_behind))
    except BadScript as error:
        sys.exit(f"error: {error}")


async def _serve(place: Place, script: Script, left_behind: dict[str, int]) -> None:
    from aiohttp import web

    from cortex.platform.fake_engine.engine import FakeEngine, log
    from cortex.platform.fake_engine.server import create_app

    memory_file = os.environ.get(MEMORY_VARIABLE)
    engine = FakeEngine(
        model=place.model,
        script=script,
        left_behind=left_behind,
        memory_file=Path(memory_file) if memory_file else None,
    )
    stopped = asyncio.Event()

    def stop() -> None:
        if engine.script.ignore_term:
            log("SIGTERM ignored.")
            return
        stopped.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stopped.set)
    runner = web.AppRunner(
        create_app(engine, os.environ.get(KEY_VARIABLE)),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=CLOSING_S,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, place.host, place.port).start()
        host, port = runner.addresses[0][:2]
        log(f"Listening on http://{host}:{port}")
        async with asyncio.TaskGroup() as tasks:
            loading = tasks.create_task(engine.load())
            await stopped.wait()
            loading.cancel()
    finally:
        await runner.cleanup()
        engine.leave()


def _import_aiohttp_without_certificates() -> None:
    """Import aiohttp a quarter faster: it loads the host's certificates, twice, for a client that we never use."""
    before = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = os.devnull
    import aiohttp  # noqa: F401

    if before is None:
        del os.environ["SSL_CERT_FILE"]
    else:
        os.environ["SSL_CERT_FILE"] = before


if __name__ == "__main__":
    main()
