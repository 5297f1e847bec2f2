"""`cortex check`: validates a catalogue."""

import json
import sys
from pathlib import Path

import rich_click as click

from cortex.cli import exits
from cortex.cli.visible import echo
from cortex.functions.catalogue import CatalogueError, notes
from cortex.router.live_catalogue import load


@click.command()
@click.argument("file", type=click.Path(path_type=Path), default=Path("models.toml"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def check(file: Path, as_json: bool) -> None:
    """Check a catalogue: list every problem, and settings without effect."""
    try:
        catalogue = load(file, strict=True)
    except CatalogueError as error:
        if as_json:
            click.echo(json.dumps({"file": str(file), "problems": [str(p) for p in error.problems]}))
            sys.exit(exits.FAILED)
        raise exits.Failed(str(error), hint=f"{len(error.problems)} problems in {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise exits.Failed(f"{file}: cannot be read: {error}") from None
    if as_json:
        counts = {"functions": len(catalogue.functions), "aliases": len(catalogue.aliases)}
        click.echo(json.dumps({"file": str(file), "problems": [], "notes": list(notes(catalogue)), **counts}))
        return
    for note in notes(catalogue):
        echo(f"note: {note}")
    echo(f"{file}: {len(catalogue.functions)} functions, {len(catalogue.aliases)} aliases: no problems")
