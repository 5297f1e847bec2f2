"""`cortex up`: one parent process with Redis, an agent, a job worker and a router as its children.

Every child leads its own process group, so that Ctrl-C reaches only the parent, and dies with the parent, even if that
is killed. A child that exits is restarted with increasing delay. At the end all children get TERM; those that do not
exit in time are killed with their descendants, and so are workers whose agent has exited before them.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import psutil
import rich_click as click
from msgspec.structs import replace
from rich.console import Console

from cortex.cli import local
from cortex.cli.connection import ERRORS, Connection
from cortex.cli.exits import FAILED, Failed
from cortex.cli.settings import config_option, settings_of
from cortex.functions.catalogue import Catalogue, CatalogueError
from cortex.platform import embedded_redis, log
from cortex.platform.agent import state_file
from cortex.platform.process import garbage
from cortex.platform.process.termination import describe_exit
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.serving import address
from cortex.platform.settings import Settings
from cortex.platform.settings_file import declared_devices, encode_env
from cortex.platform.workers import cgroup, log_files
from cortex.platform.workers.orphans import kill_unknown
from cortex.platform.workers.process import owner
from cortex.router.live_catalogue import load

STOP_S = 7.0
"""Time from TERM to KILL; the whole shutdown takes less than 10 s."""
KILLED_WITHIN_S = 1.0
START_S = 60.0
STEADY_S = 30.0
MOST_PAUSE_S = 10.0
MOST_LOG_BYTES = 16 * 1024 * 1024
"""Maximum size of a program's log, and of its earlier part; requests add lines to the router's log."""
LOG_CHECK_S = 2.0
HEALTH_CHECK_S = 0.05


@click.command()
@config_option
@click.option("--models", type=click.Path(path_type=Path), help="The catalogue [default: models.toml].")
@click.option("--port", type=click.IntRange(1, 65535), help="The router's port [default: 31313].")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Router processes.")
@click.option("--devices", help="Declare GPUs instead of detecting them, such as 2x24GB,1x80GB.")
@click.option("--fake", is_flag=True, help="Serve every function with the fake engine, to try cortex out.")
def up(
    config: Path | None, models: Path | None, port: int | None, workers: int, devices: str | None, fake: bool
) -> None:
    """Run everything on this machine: Redis, an agent, a job worker and a router.

    Needs no root, no Redis, no GPU and no configuration. Ctrl-C stops everything; a second Ctrl-C kills it.
    """
    settings = settings_of(config)
    log.configure(settings.log)
    if devices:
        declared = declared_devices(devices)
        if declared is None:
            raise click.BadParameter(f"'{devices}' is not like 2x24GB,1x80GB", param_hint="--devices")
        settings = replace(settings, agent=replace(settings.agent, devices=declared))
    garbage.settle()
    sys.exit(asyncio.run(run(replace(settings, pretend=fake or settings.pretend), models, port, workers)))


class Child:
    """A program that runs as long as this process."""

    def __init__(self, name: str, argv: list[str], env: Mapping[str, str], log: Path, lock: int) -> None:
        """`lock` is a descriptor for the child to inherit: see `local.lock`."""
        self.name, self._argv, self._env, self.log, self._lock = name, argv, env, log, lock
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the program; it dies with this process."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        die_with_parent = [sys.executable, "-m", "cortex.platform.process.parent_death", str(os.getpid())]
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *die_with_parent,
                *self._argv,
                env={**os.environ, **self._env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(self._lock,),
            )

    async def supervise(self) -> None:
        """Restart the program whenever it exits, with increasing delay if it exits early."""
        pause = 0.2
        while True:
            assert self.process is not None
            started = time.monotonic()
            code = await self.process.wait()
            if time.monotonic() - started > STEADY_S:
                pause = 0.2
            _print(f"{self.name} {describe_exit(code)}; restarting it (log: {self.log})")
            await asyncio.sleep(pause)
            pause = min(pause * 2, MOST_PAUSE_S)
            await self.start()

    def last_lines(self) -> str:
        """Return the end of the program's log."""
        return "\n".join(log_files.tail(self.log, 15))


async def bound_logs(children: Sequence[Child], most_bytes: int = MOST_LOG_BYTES, check_s: float = LOG_CHECK_S) -> None:
    """Limit the size of the programs' logs until cancelled. Programs append, so they go on in a truncated log."""
    while True:
        for child in children:
            await asyncio.to_thread(log_files.cut, child.log, most_bytes)
        await asyncio.sleep(check_s)


async def run(settings: Settings, models: Path | None, port: int | None, workers: int) -> int:
    """Run until a stop signal. Return the exit code."""
    path, catalogue = _catalogue(settings, models)
    lock = await _lock()
    settings = _prepare(settings, path, port)
    runtime_dir = Path(tempfile.mkdtemp(prefix="cortex-"))  # unix socket paths have at most 107 bytes
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    children: list[Child] = []

    def on_signal(number: signal.Signals) -> None:
        # A second TERM is the same one: a service manager or terminal signals the group, and `uv run` passes it on.
        if stop.is_set() and number is signal.SIGINT:
            _kill_everything(settings)
            os._exit(130)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    try:
        settings = replace(settings, local_key_file=str(local.make_key()))
        settings = await _with_redis(settings, runtime_dir, children, lock)
        await _start(settings, children, workers, stop, lock)
        if stop.is_set():
            return 0
        _welcome(f"http://{settings.gateway.listen}", catalogue, settings)
        tasks = [asyncio.create_task(task) for task in (*(c.supervise() for c in children), bound_logs(children))]
        await stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        _print("stopping")
        return 0
    finally:
        await _end(children, settings)
        local.withdraw()
        shutil.rmtree(runtime_dir, ignore_errors=True)


async def _lock() -> int:
    """Take the lock of this user's only `cortex up`, before anything is started or written. Raises Failed."""
    try:
        async with asyncio.timeout(STOP_S + START_S):
            reported = False
            while True:
                try:
                    return local.lock()
                except BlockingIOError:
                    if not reported:
                        _print("waiting for processes of the last `cortex up` to exit")
                    reported = True
                await asyncio.sleep(0.1)
    except local.AlreadyUp as error:
        raise Failed(str(error), code=FAILED) from None
    except TimeoutError:
        raise Failed(
            "processes of the last `cortex up` have not exited",
            hint=f"`fuser {local.state_dir() / 'up.lock'}` lists them.",
        ) from None


def _catalogue(settings: Settings, models: Path | None) -> tuple[Path, Catalogue]:
    """Read the catalogue before anything is started or written."""
    path = (models or Path(settings.models_config)).resolve()
    try:
        return path, load(path)
    except CatalogueError as error:
        raise Failed(str(error), hint="Nothing was started.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Failed(f"{path}: cannot be read: {error}", hint="Set its path with --models.") from None


def _prepare(settings: Settings, path: Path, port: int | None) -> Settings:
    """Choose the ports before anything is started."""
    listen = f"127.0.0.1:{port}" if port else settings.gateway.listen
    if not address.is_loopback(listen):
        raise Failed(f"`cortex up` listens on loopback only, not on {listen}")
    # Loopback needs no TLS, for which the commands would have to trust a certificate.
    gateway = replace(settings.gateway, tls_cert="", tls_key="", listen=_free(listen, "the router"), drain_s=4.0)
    if gateway.metrics_listen:
        gateway = replace(gateway, metrics_listen=_free(gateway.metrics_listen, "metrics", _port(gateway.listen)))
    agent = replace(
        settings.agent,
        tls_cert="",
        tls_key="",
        listen=_free(settings.agent.listen, "the agent"),
        keep_workers=False,
        stop_grace_s=min(settings.agent.stop_grace_s, 3.0),
    )
    return replace(settings, models_config=str(path), gateway=gateway, agent=agent)


def _port(listen: str) -> int:
    return int(listen.rpartition(":")[2])


def _free(listen: str, service: str, reserved: int = 0) -> str:
    host, configured = address.split(listen)
    port = address.first_free_port(host, configured + (configured == reserved))
    if port == reserved:
        port = address.first_free_port(host, reserved + 1)
    if port is None:
        raise Failed(f"no free port for {service} from {configured} on")
    if port != configured:
        _print(f"port {configured} is in use: {service} listens on {port}")
    return address.join(host, port)


async def _with_redis(settings: Settings, runtime_dir: Path, children: list[Child], lock: int) -> Settings:
    """Return the settings with a Redis that answers: the configured one, or a child of this process."""
    own = not settings.redis.url
    if own:
        data = local.state_dir() / "redis"
        data.mkdir(parents=True, exist_ok=True)
        socket_path = runtime_dir / "redis.sock"
        try:
            argv = embedded_redis.command(embedded_redis.server(), data, socket_path)
        except embedded_redis.NoRedis as error:
            raise Failed(str(error)) from None
        redis = Child("redis", argv, {}, _log("redis"), lock)
        children.append(redis)
        await redis.start()
        settings = replace(settings, redis=replace(settings.redis, url=f"unix://{socket_path}"))
    registry = Registry.of(settings)
    try:
        async with asyncio.timeout(START_S):
            while True:
                with contextlib.suppress(RecordUnavailable):
                    await registry.ping()
                    if own:  # only this `up` uses it, so a new token file is not another fleet
                        await registry.disown()
                    return settings
                _check_alive(children)
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise Failed(f"Redis at {settings.redis_shown} does not answer") from None
    finally:
        await registry.close()


async def _start(settings: Settings, children: list[Child], workers: int, stop: asyncio.Event, lock: int) -> None:
    """Start the other programs and wait until the router is healthy. Raises Failed."""
    url = f"http://{settings.gateway.listen}"
    local.announce(url)  # before the router answers: a command that reaches it finds the local key
    env = encode_env(settings)
    program = [sys.executable, "-m", "cortex.cli"]
    for name, arguments in (
        ("agent", ["agent"]),
        ("jobs", ["jobs"]),
        ("router", ["router", "--workers", str(workers)]),
    ):
        child = Child(name, [*program, *arguments], env, _log(name), lock)
        children.append(child)
        await child.start()
    try:
        async with asyncio.timeout(START_S):
            while not stop.is_set() and not await asyncio.to_thread(_is_healthy, url):
                _check_alive(children)
                await asyncio.sleep(HEALTH_CHECK_S)
    except TimeoutError:
        logs = "\n".join(f"{c.name}: {c.log}" for c in children)
        raise Failed(f"the router at {url} was not ready within {START_S:.0f} s", hint=logs) from None


def _is_healthy(url: str) -> bool:
    """Whether the router answers that it can serve."""
    try:
        with Connection(url, {}).answer("GET", "/health", None, timeout_s=2) as answer:
            return bool(msgspec.json.decode(answer.read())["status"] == "ok")
    except (*ERRORS, msgspec.DecodeError):
        return False


def _check_alive(children: list[Child]) -> None:
    for child in children:
        if child.process is not None and child.process.returncode is not None:
            how = describe_exit(child.process.returncode)
            raise Failed(f"{child.name} {how} during startup", hint=f"{child.last_lines()}\n(log: {child.log})")


async def _end(children: list[Child], settings: Settings) -> None:
    """Send TERM to every child, Redis last; then kill the remaining ones, all descendants and all workers."""
    descendants = _descendants()
    deadline = time.monotonic() + STOP_S
    rest = [c for c in children if c.name != "redis"]
    for group in (rest, [c for c in children if c.name == "redis"]):
        running = [c.process for c in group if c.process is not None and c.process.returncode is None]
        for one in running:
            with contextlib.suppress(ProcessLookupError):
                one.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.5, deadline - time.monotonic())):
                await asyncio.gather(*(one.wait() for one in running))
    _kill(_descendants() | descendants)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KILLED_WITHIN_S):
            await asyncio.gather(*(c.process.wait() for c in children if c.process is not None))
    _kill_workers(settings)


def _descendants() -> set[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return set(psutil.Process().children(recursive=True))
    return set()


def _kill(processes: set[psutil.Process]) -> None:
    for one in processes:
        with contextlib.suppress(psutil.Error):
            one.kill()


def _kill_workers(settings: Settings) -> None:
    """Kill workers that are no descendants of this process, since the agent that started them was killed. Does nothing
    while an agent runs: it is another one, which this process has not started, and they are its workers."""
    folder = Path(settings.agent.state_dir)
    with contextlib.suppress(state_file.AnotherAgent, OSError):
        state_file.lock(folder, settings.host_name)
        mark = owner(folder)
        groups = cgroup.home(mark)
        kill_unknown(mark, groups)
        cgroup.remove_home(groups)


def _kill_everything(settings: Settings) -> None:
    descendants = _descendants()
    _kill(descendants)
    psutil.wait_procs(list(descendants), timeout=KILLED_WITHIN_S)
    _kill_workers(settings)
    local.withdraw()


def _log(name: str) -> Path:
    return local.state_dir().joinpath("log", f"{name}.log")


def _print(text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"cortex: {text}", markup=False)


def _welcome(url: str, catalogue: Catalogue, settings: Settings) -> None:
    name = next(iter([*catalogue.aliases, *catalogue.functions]), None)
    out = Console(highlight=False, soft_wrap=True)
    out.print(f"[bold green]cortex is up[/] at [bold]{url}/v1[/]", "with", f"{len(catalogue.functions)} functions")
    if name is not None:
        body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
        out.print("\nTry it (the first request starts the model):\n")
        out.print(f"  curl {url}/v1/chat/completions -H 'content-type: application/json' \\", markup=False)
        out.print(f"    -d '{body}'\n", markup=False)
    else:
        out.print(f"\nThe catalogue {settings.models_config} is empty: add a function to it.\n", markup=False)
    out.print("`cortex fn ls` shows what is warm. Ctrl-C stops everything.", markup=False)
    sys.stdout.flush()
