"""`cortex check`: validates a catalogue, and explains an entry of it."""

import sys
from pathlib import Path

import rich_click as click

from cortex.cli import exits
from cortex.cli.tables import quantity
from cortex.cli.toml_text import write_value
from cortex.cli.visible import echo, echo_json
from cortex.functions.catalogue import Catalogue, CatalogueError, notes
from cortex.functions.explanation import Value, explain
from cortex.functions.names import did_you_mean
from cortex.functions.variants import OWN, WISHES
from cortex.platform import text_files
from cortex.router.live_catalogue import load


@click.command()
@click.argument("file", type=click.Path(path_type=Path), default=Path("models.toml"))
@click.option("--explain", "name", default="", metavar="NAME", help="Print a function's entry as it takes effect.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def check(file: Path, name: str, as_json: bool) -> None:
    """Check a catalogue: list every problem, and settings without effect.

    With --explain, print the entry of a function with every value, and where each comes from.
    """
    try:
        catalogue = load(file, strict=True)
        text = text_files.read(file)
    except CatalogueError as error:
        if as_json:
            echo_json({"file": str(file), "problems": [str(p) for p in error.problems]})
            sys.exit(exits.FAILED)
        raise exits.Failed(str(error), hint=f"{quantity(len(error.problems), 'problem')} in {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise exits.Failed(f"{file}: cannot be read: {error}") from None
    if name:
        _explain(file, text, catalogue, name, as_json)
        return
    if as_json:
        counts = {"functions": len(catalogue.functions), "aliases": len(catalogue.aliases)}
        echo_json({"file": str(file), "problems": [], "notes": notes(catalogue), **counts})
        return
    for note in notes(catalogue):
        echo(f"note: {note}")
    functions, aliases = quantity(len(catalogue.functions), "function"), quantity(len(catalogue.aliases), "alias")
    echo(f"{file}: {functions}, {aliases}: no problems")


def _explain(file: Path, text: str, catalogue: Catalogue, name: str, as_json: bool) -> None:
    """Print an entry with the origin of each value. Raises Failed."""
    explanation = explain(text, catalogue, name)
    if explanation is None:
        hint = did_you_mean(name, (*catalogue.functions, *catalogue.aliases))
        raise exits.Failed(f"{file}: '{name}' is not in the catalogue{hint}", code=exits.NOT_FOUND)
    function, values = explanation
    substitute = catalogue.substitutes.get(name)
    variants = [f.id for f in catalogue.functions.values() if f.variant_of == function.id]
    if as_json:
        origins = {v.key: {"value": v.value, "origin": _origin(file, v)} for v in values}
        shared = {"variant_of": function.variant_of, "variants": variants}
        echo_json({"name": name, "id": function.id, "substitute": substitute, **shared, "values": origins}, indent=2)
        return
    if name != function.id:
        echo(f"# {name} is an alias of {function.id}")
    if function.variant_of:
        echo(f"# the instances of {function.variant_of} serve it")
    if variants:
        echo(f"# its instances also serve {', '.join(variants)}")
    if substitute is not None:
        echo(f"# while that is not ready, {substitute.use} answers for {name} (within_s = {substitute.within_s:g})")
    own = (*OWN, *WISHES) if function.variant_of else function.__struct_fields__
    written = [f"{'' if v.key in own else '# '}{v.key} = {write_value(v.value)}" for v in values]
    width = min(48, max(map(len, written)))
    for line, value in zip(written, values, strict=True):
        echo(f"{line:{width}}  # {_origin(file, value)}")


def _origin(file: Path, value: Value) -> str:
    """Return where a value comes from."""
    if not value.table:
        return "default"
    place = f"{file}:{value.line}" if value.line else str(file)
    whose = f" of {value.of}" if value.of else ""
    return f"{place} [defaults]{whose}" if value.table == "defaults" else f"{place}{whose}"
