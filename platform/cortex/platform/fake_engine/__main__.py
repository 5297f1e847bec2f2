"""The process: reads the command line and the environment, then serves until a signal stops it.

The heavy import comes late, because tests start many of these processes.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from cortex.platform.fake_engine.options import Setup, parse
from cortex.platform.fake_engine.orphans import leave_daemon, leave_grandchild
from cortex.platform.fake_engine.script import BadScript, Script
from cortex.platform.process import garbage

KEY_VARIABLE, CONTROL_VARIABLE = "CORTEX_WORKER_KEY", "CORTEX_CONTROL_KEY"
MEMORY_VARIABLE = "CORTEX_FAKE_MEMORY_FILE"
CLOSING_S = 0.01  # 0 would mean no time limit to aiohttp


def main() -> None:
    """Run the worker."""
    garbage.collect_seldom()
    setup, script = parse()
    # A handler, not SIG_IGN, which the orphans would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None if script.ignore_term else os._exit(0))
    orphans = {}
    if setup.leave_grandchild:
        orphans["grandchild"] = leave_grandchild(hold_stdout=setup.hold_stdout)
    if setup.leave_daemon:
        orphans["daemon"] = leave_daemon(hold_stdout=setup.hold_stdout)
    _import_aiohttp_without_certificates()
    garbage.settle()
    try:
        asyncio.run(_serve(setup, script, orphans))
    except BadScript as error:
        sys.exit(f"error: {error}")


async def _serve(setup: Setup, script: Script, orphans: dict[str, int]) -> None:
    from aiohttp import web

    from cortex.platform.fake_engine.engine import FakeEngine, log
    from cortex.platform.fake_engine.server import create_app

    memory_file = os.environ.get(MEMORY_VARIABLE)
    engine = FakeEngine(
        model=setup.model,
        script=script,
        orphans=orphans,
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
        create_app(engine, os.environ.get(KEY_VARIABLE), os.environ.get(CONTROL_VARIABLE)),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=CLOSING_S,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, setup.host, setup.port).start()
        host, port = runner.addresses[0][:2]
        log(f"Listening on http://{host}:{port}")
        async with asyncio.TaskGroup() as tasks:
            loading = tasks.create_task(engine.load())
            await stopped.wait()
            loading.cancel()
    finally:
        await runner.cleanup()
        engine.release_memory()


def _import_aiohttp_without_certificates() -> None:
    """Import aiohttp a quarter faster: it would load the host's certificates twice, for its unused client."""
    previous = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = os.devnull
    import aiohttp  # noqa: F401 (for the import alone)

    if previous is None:
        del os.environ["SSL_CERT_FILE"]
    else:
        os.environ["SSL_CERT_FILE"] = previous


if __name__ == "__main__":
    main()
