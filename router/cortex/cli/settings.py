"""How a command that runs a part of cortex gets its settings."""

from pathlib import Path

import rich_click as click

from cortex.cli.exits import Failed
from cortex.cli.visible import echo
from cortex.platform import settings as settings_
from cortex.platform.settings import Settings, SettingsError

config_option = click.option(
    "-c", "--config", type=click.Path(path_type=Path), help="The cortex.toml to read [default: none]."
)


def settings_of(config: Path | None) -> Settings:
    """Read the settings; say what is odd about them. Raises Failed."""
    try:
        settings, notes = settings_.from_environment(config)
    except SettingsError as error:
        raise Failed(str(error)) from None
    for note in notes:
        echo(f"note: {note}", err=True)
    return settings
