"""Names in the source use the field's terms: `docs/glossary.md` has them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = [p for area in ("functions", "platform", "router") for p in sorted((ROOT / area / "cortex").rglob("*.py"))]
RETIRED = {
    "beside": "in addition to, exclude",
    "caretaker": "monitor",
    "fate": "outcome",
    "heed": "apply",
    "herald": "publisher",
    "journey": "request record",
    "journeys": "request records",
    "leash": "parent death",
    "leftovers": "orphans",
    "mend": "repair",
    "mender": "repair",
    "nobody": "the component it is",
    "roster": "state",
    "settling": "reconcile",
    "somebody": "the component it is",
    "whoever": "the component it is",
}
"""Words that are not used as names any more, with what to use instead."""
TRAVELS = {("agent_messages.py", "beside")}
"""Names of fields that earlier processes send."""


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield every name that a module gives to something, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.arg(arg=name):
                yield name, node.lineno
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno


@pytest.mark.parametrize("area", ["functions", "platform", "router"])
def test_no_retired_word_is_the_name_of_anything(area: str) -> None:
    files = [p for p in SOURCE if p.is_relative_to(ROOT / area)]

    uses = [
        f"{path.relative_to(ROOT)}:{line}: {name}: use {RETIRED[word]}"
        for path in files
        for name, line in names(ast.parse(path.read_text()))
        if (word := name.strip("_").lower()) in RETIRED and (path.name, word) not in TRAVELS
    ]

    assert uses == []


def test_no_module_has_a_retired_word_for_a_name() -> None:
    assert [p for p in SOURCE if p.stem in RETIRED] == []
