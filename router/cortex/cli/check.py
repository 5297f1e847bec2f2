"""`cortex check`: what is wrong with a catalogue."""

from pathlib import Path

import rich_click as click

from cortex.cli import exits
from cortex.functions.catalogue import CatalogueError, notes
from cortex.router.directory import load


@click.command()
@click.argument("file", type=click.Path(path_type=Path), default=Path("models.toml"))
def check(file: Path) -> None:
    """Check a catalogue: every problem at once, and what is kept but has no effect yet."""
    try:
        catalogue = load(file)
    except CatalogueError as error:
        raise exits.Failed(str(error), hint=f"{len(error.problems)} problems in {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise exits.Failed(f"{file}: cannot be read: {error}") from None
    for note in notes(catalogue):
        click.echo(f"note: {note}")
    click.echo(f"{file}: {len(catalogue.functions)} functions, {len(catalogue.aliases)} aliases: all well")
