"""Settings of the commands that run cortex's processes, and the check of their record."""

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cortex.cli.exits import FAILED, Failed
from cortex.cli.visible import echo

if TYPE_CHECKING:
    from cortex.platform.settings import Settings

config_option = click.option(
    "-c", "--config", type=click.Path(path_type=Path), help="The cortex.toml to read [default: none]."
)


def settings_of(config: Path | None) -> "Settings":
    """Read the settings and print notes about them. Raises Failed."""
    from cortex.platform.settings import SettingsError
    from cortex.platform.settings_file import from_environment

    try:
        settings, notes = from_environment(config)
    except SettingsError as error:
        raise Failed(str(error)) from None
    for note in notes:
        echo(f"note: {note}", err=True)
    return settings


def refuse_another_fleets_record(settings: "Settings", *, of_host: bool = False) -> None:
    """Raise Failed if Redis has the record of a fleet with another token, or if the token cannot be used: the fleet
    token, or that of this host. An unavailable Redis is not an error."""
    import asyncio

    from cortex.platform.keys import FleetToken, HostToken
    from cortex.platform.registry import ForeignFleet, RecordUnavailable, Registry
    from cortex.platform.settings import SettingsError

    async def check(token: FleetToken | HostToken) -> None:
        registry = Registry.of(settings, token)
        try:
            await registry.ping()
        finally:
            await registry.close()

    try:
        token = HostToken.of(settings) if of_host else FleetToken(Path(settings.token_file).expanduser())
        asyncio.run(check(token))
    except ForeignFleet as error:
        raise Failed(f"refusing to start: {error}", code=FAILED) from None
    except (SettingsError, OSError) as error:
        raise Failed(str(error)) from None
    except RecordUnavailable:
        return
