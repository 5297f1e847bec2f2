"""`cortex router` and `cortex agent`: the processes that a service manager runs."""

import asyncio
import sys
from pathlib import Path

import rich_click as click

from cortex.cli import exits
from cortex.cli.settings import config_option, refuse_another_fleets_record, settings_of
from cortex.cli.visible import echo
from cortex.platform import log
from cortex.platform.process import standard_streams
from cortex.platform.settings import Settings

_tls_cert = click.option("--tls-cert", metavar="FILE", help="Serve https with this certificate; changes are reloaded.")
_tls_key = click.option("--tls-key", metavar="FILE", help="The certificate's private key.")


@click.command()
@config_option
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes.")
@click.option("--insecure", is_flag=True, help="Listen beyond loopback without an API key.")
@_tls_cert
@_tls_key
def router(config: Path | None, workers: int, insecure: bool, tls_cert: str | None, tls_key: str | None) -> None:
    """Run a router, which serves the clients' URL."""
    from msgspec.structs import replace

    settings = settings_of(config)
    gateway = settings.gateway
    gateway = replace(gateway, tls_cert=tls_cert or gateway.tls_cert, tls_key=tls_key or gateway.tls_key)
    _route(replace(settings, gateway=gateway), workers, insecure)


@click.command(hidden=True)
@config_option
def serve(config: Path | None) -> None:
    """Run a router (the command's earlier name)."""
    _route(settings_of(config), 1, insecure=False)


def _route(settings: Settings, workers: int, insecure: bool) -> None:
    from msgspec.structs import replace

    from cortex.functions.catalogue import CatalogueError
    from cortex.platform.serving.address import is_loopback
    from cortex.router.live_catalogue import load
    from cortex.router.serve import NotStarted
    from cortex.router.serve import serve as run

    standard_streams.protect()
    log.configure(settings.log)
    settings = replace(settings, gateway=replace(settings.gateway, insecure=insecure or settings.gateway.insecure))
    refuse_another_fleets_record(settings)
    listen = settings.gateway.listen
    if not is_loopback(listen) and not _any_key(settings):
        if not settings.gateway.insecure:
            raise exits.Failed(
                f"refusing to listen on {listen}: there is no API key, so every client on the network could use and "
                "stop the models",
                hint="Create a key first: `cortex key new NAME --admin --record` (with the same --config). "
                "Or listen on 127.0.0.1. Or add --insecure if the network restricts access.",
            )
        echo(
            f"cortex: --insecure: every client that reaches {listen} can use, see, start and stop every model until an "
            "API key exists",
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
    """Whether an API key exists."""
    from cortex.platform.registry import RecordUnavailable, Registry

    async def keys() -> bool:
        registry = Registry.of(settings)
        try:
            return bool(await registry.api_keys.all())
        finally:
            await registry.close()

    try:
        return asyncio.run(keys())
    except RecordUnavailable as error:
        if settings.gateway.insecure:
            return False
        raise exits.Failed(
            f"refusing to listen on {settings.gateway.listen}: cannot check whether an API key exists: {error}",
            hint="Start Redis first; set its URL with CORTEX_REDIS_URL or --config.",
        ) from None


@click.command()
@config_option
@_tls_cert
@_tls_key
def agent(config: Path | None, tls_cert: str | None, tls_key: str | None) -> None:
    """Run this host's agent, which starts, watches and stops the workers."""
    from msgspec.structs import replace

    from cortex.platform.agent import state_file
    from cortex.platform.agent.api import create_app
    from cortex.platform.process import garbage
    from cortex.platform.serving import listener, systemd
    from cortex.platform.workers.hardening import harden_process
    from cortex.platform.workers.worker_user import share_cache

    settings = settings_of(config)
    agent_settings = settings.agent
    agent_settings = replace(
        agent_settings,
        tls_cert=tls_cert or agent_settings.tls_cert,
        tls_key=tls_key or agent_settings.tls_key,
    )
    settings = replace(settings, agent=agent_settings)
    log.configure(settings.log)
    refuse_another_fleets_record(settings, of_host=True)
    harden_process(no_new_privs=settings.agent.no_new_privs)
    share_cache(settings.agent)
    inherited = systemd.listeners().get("agent")
    try:
        state_file.lock(Path(settings.agent.state_dir), settings.host_name)  # until this process ends
        _check_name(settings)
        served = listener.config(
            create_app(settings),
            settings.agent.listen,
            cert=settings.agent.tls_cert,
            key=settings.agent.tls_key,
            timeout_graceful_shutdown=2,
        )
        server = listener.Server(served)
        garbage.settle()
        server.run(sockets=[inherited] if inherited else None)
        if not server.started:
            sys.exit(exits.FAILED)
    except (state_file.AnotherAgent, OSError) as error:
        hint = exits.WRITABLE if isinstance(error, OSError) and exits.is_not_writable(error) else ""
        raise exits.Failed(str(error), hint=hint) from None


def _check_name(settings: Settings) -> None:
    """Raise Failed if another machine's agent has this host's name. Without Redis, publishing detects it."""
    from cortex.platform.agent.host_name import NameTaken, check_name, home
    from cortex.platform.process.process_id import boot_id
    from cortex.platform.registry import RecordUnavailable, Registry

    async def check() -> None:
        registry = Registry.of(settings)
        try:
            await check_name(registry, settings.host_name, home(Path(settings.agent.state_dir), boot_id()))
        finally:
            await registry.close()

    try:
        asyncio.run(check())
    except RecordUnavailable:
        return
    except NameTaken as error:
        raise exits.Failed(
            str(error),
            hint="Give each machine a unique name: `[agent] name`, or CORTEX_AGENT__NAME. Then restart it.",
        ) from None
