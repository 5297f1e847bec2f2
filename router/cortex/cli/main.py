"""`cortex`: one command line for operators."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import rich_click as click

from cortex.cli import exits, fn_show, prefetch
from cortex.cli.call import call
from cortex.cli.completion import completion
from cortex.cli.decisions import events, why
from cortex.cli.doctor import doctor
from cortex.cli.fn import fn
from cortex.cli.host import gpu, host
from cortex.cli.jobs import jobs
from cortex.cli.key import key
from cortex.cli.req import req
from cortex.cli.settings import config_option, settings_of
from cortex.cli.status import status
from cortex.cli.top import top
from cortex.cli.weights import weights
from cortex.platform import log
from cortex.platform.settings import Settings, SettingsError

click.rich_click.TEXT_MARKUP = "rich"
click.rich_click.SHOW_ARGUMENTS = True
click.rich_click.GROUP_ARGUMENTS_OPTIONS = True


_tls_cert = click.option("--tls-cert", metavar="FILE", help="Speak https with this certificate, and follow the file.")
_tls_key = click.option("--tls-key", metavar="FILE", help="The key of the certificate.")


@click.group(epilog=exits.HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cortex", prog_name="cortex")
def cli() -> None:
    """Serve language models from your own hosts, each started by the first request that needs it.

    Begin with `cortex up`: it runs everything on this machine and prints a request to try.
    """


for command in (
    fn,
    host,
    gpu,
    key,
    weights,
    jobs,
    req,
    status,
    top,
    why,
    events,
    call,
    doctor,
    completion,
):
    cli.add_command(command)
for command in (*fn_show.COMMANDS, *prefetch.COMMANDS):
    fn.add_command(command)


@cli.command()
@config_option
@click.option("--models", type=click.Path(path_type=Path), help="The catalogue [default: models.toml].")
@click.option("--port", type=click.IntRange(1, 65535), help="The router's port [default: 31313].")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Router processes.")
@click.option("--devices", help="Declare GPUs instead of looking for them, such as 2x24GB,1x80GB.")
@click.option("--fake", is_flag=True, help="Serve every function with the fake engine: a fleet to play with.")
def up(
    config: Path | None, models: Path | None, port: int | None, workers: int, devices: str | None, fake: bool
) -> None:
    """Run everything on this machine: Redis, an agent, a job worker and a router.

    Needs no root, no Redis, no GPU and no configuration. Ctrl-C stops it all; a second Ctrl-C at once.
    """
    from msgspec.structs import replace

    from cortex.cli.up import run
    from cortex.platform.settings import declared_devices

    settings = settings_of(config)
    log.configure(settings.log)
    if devices:
        declared = declared_devices(devices)
        if declared is None:
            raise click.BadParameter(f"'{devices}' is not like 2x24GB,1x80GB", param_hint="--devices")
        settings = replace(settings, agent=replace(settings.agent, devices=declared))
    sys.exit(asyncio.run(run(replace(settings, pretend=fake or settings.pretend), models, port, workers)))


@cli.command()
@config_option
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes.")
@click.option("--insecure", is_flag=True, help="Listen on an address other than loopback without any key.")
@_tls_cert
@_tls_key
def router(config: Path | None, workers: int, insecure: bool, tls_cert: str | None, tls_key: str | None) -> None:
    """Run a router: the URL that clients talk to."""
    from msgspec.structs import replace

    settings = settings_of(config)
    gateway = settings.gateway
    gateway = replace(gateway, tls_cert=tls_cert or gateway.tls_cert, tls_key=tls_key or gateway.tls_key)
    _route(replace(settings, gateway=gateway), workers, insecure)


@cli.command(hidden=True)
@config_option
def serve(config: Path | None) -> None:
    """Run a router (the name this command had before)."""
    _route(settings_of(config), 1, insecure=False)


def _route(settings: Settings, workers: int, insecure: bool) -> None:
    from msgspec.structs import replace

    from cortex.functions.catalogue import CatalogueError
    from cortex.platform.serving.address import is_loopback
    from cortex.router.directory import load
    from cortex.router.serve import NotStarted
    from cortex.router.serve import serve as run

    log.configure(settings.log)
    settings = replace(settings, gateway=replace(settings.gateway, insecure=insecure or settings.gateway.insecure))
    listen = settings.gateway.listen
    if not is_loopback(listen) and not _any_key(settings):
        if not settings.gateway.insecure:
            raise exits.Failed(
                f"refusing to listen on {listen}: there is no API key, so anybody who reaches it could use the "
                "models and stop them",
                hint="Make a key first: `cortex key new NAME --admin --record` (with the same --config). "
                "Or listen on 127.0.0.1. Or say --insecure if the network keeps everybody else out.",
            )
        click.echo(
            f"cortex: --insecure: whoever reaches {listen} can use every model, see "
            "what everybody runs, and start and stop everything, until somebody makes an API key",
            err=True,
        )
    try:
        load(Path(settings.models_config))
        run(settings, workers)
    except CatalogueError as error:
        raise exits.Failed(str(error), hint="Nothing was started.") from None
    except (OSError, UnicodeDecodeError, NotStarted) as error:
        raise exits.Failed(str(error)) from None


def _any_key(settings: Settings) -> bool:
    """Whether anybody has made an API key."""
    from cortex.platform.registry import RecordAway, Registry

    async def keys() -> bool:
        registry = Registry.of(settings)
        try:
            return bool(await registry.keys())
        finally:
            await registry.close()

    try:
        return asyncio.run(keys())
    except RecordAway as error:
        if settings.gateway.insecure:
            return False
        raise exits.Failed(
            f"refusing to listen on {settings.gateway.listen} before it is known whether there is an API key: {error}",
            hint="Start Redis first; CORTEX_REDIS_URL or --config says where it is.",
        ) from None


@cli.command()
@config_option
@_tls_cert
@_tls_key
def agent(config: Path | None, tls_cert: str | None, tls_key: str | None) -> None:
    """Run this host's agent: it starts, watches and stops the workers."""
    import uvicorn
    from msgspec.structs import replace

    from cortex.platform.agent.api import create_app
    from cortex.platform.serving import listener, systemd
    from cortex.platform.workers.confine import confine

    settings = settings_of(config)
    own = settings.agent
    settings = replace(settings, agent=replace(own, tls_cert=tls_cert or own.tls_cert, tls_key=tls_key or own.tls_key))
    log.configure(settings.log)
    confine(no_new_privs=settings.agent.no_new_privs)
    passed = systemd.listeners().get("agent")
    try:
        served = listener.config(
            create_app(settings),
            settings.agent.listen,
            cert=settings.agent.tls_cert,
            key=settings.agent.tls_key,
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(served)
        server.run(sockets=[passed] if passed else None)
        if not server.started:
            sys.exit(exits.FAILED)
    except OSError as error:
        raise exits.Failed(str(error)) from None


@cli.command()
@click.argument("file", type=click.Path(path_type=Path), default=Path("models.toml"))
def check(file: Path) -> None:
    """Check a catalogue: every problem at once, and what is kept but has no effect yet."""
    from cortex.functions.catalogue import CatalogueError, notes
    from cortex.router.directory import load

    try:
        catalogue = load(file)
    except CatalogueError as error:
        raise exits.Failed(str(error), hint=f"{len(error.problems)} problems in {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise exits.Failed(f"{file}: cannot be read: {error}") from None
    for note in notes(catalogue):
        click.echo(f"note: {note}")
    click.echo(f"{file}: {len(catalogue.functions)} functions, {len(catalogue.aliases)} aliases: all well")


class Interrupted(BaseException):
    """Ctrl-C. Not KeyboardInterrupt, which click turns into an "Aborted!" and the exit code of any failure."""


def _interrupt(_: int, __: FrameType | None) -> None:
    raise Interrupted


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGINT, _interrupt)  # what serves sets handlers of its own
    try:
        cli.main(prog_name="cortex", standalone_mode=True)
    except (exits.Failed, SettingsError) as failed:
        click.echo(f"cortex: {failed}", err=True)
        sys.exit(failed.exit_code if isinstance(failed, exits.Failed) else exits.FAILED)
    except (Interrupted, KeyboardInterrupt):
        os._exit(exits.INTERRUPTED)
