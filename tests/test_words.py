"""Names in the source use the field's terms: `docs/glossary.md` has them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = [p for area in ("functions", "platform", "router") for p in sorted((ROOT / area / "cortex").rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
RETIRED = {
    "asked": "request, query, model",
    "beside": "in addition to, exclude",
    "caretaker": "monitor",
    "fate": "outcome",
    "flights": "in flight",
    "given": "arguments, value",
    "found": "result, matches, answer",
    "heard": "received, report",
    "heed": "apply",
    "herald": "publisher",
    "inquiry": "peers",
    "journey": "request record",
    "journeys": "request records",
    "kept": "saved, remaining",
    "leash": "parent death",
    "leftovers": "orphans",
    "made": "what it is: builder, result, certificate",
    "meant": "expected, match",
    "mend": "repair",
    "mender": "repair",
    "met": "outcome, error",
    "nobody": "the component it is",
    "passenger": "request",
    "roster": "state",
    "said": "output, text, reply",
    "settling": "reconcile",
    "somebody": "the component it is",
    "tame": "safe",
    "told": "value, report, headers",
    "whoever": "the component it is",
}
"""Words that are not used as names any more, with what to use instead."""
TRAVELS = {("agent_messages.py", "beside")}
"""Names of fields that earlier processes send."""


USE = re.compile(rf"(?<!\w)_*(?:{'|'.join(RETIRED)})_*(?!\w)", re.IGNORECASE)
"""A retired word anywhere in a text: a file without one is not parsed."""


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


@pytest.mark.parametrize("area", ["functions", "platform", "router", "tests"])
def test_no_name_is_a_retired_word(area: str) -> None:
    files = [p for p in (*SOURCE, *TESTS) if p.is_relative_to(ROOT / area)]

    uses = [
        f"{path.relative_to(ROOT)}:{line}: {name}: use {RETIRED[word]}"
        for path in files
        if USE.search(text := path.read_text())
        for name, line in names(ast.parse(text))
        if (word := name.strip("_").lower()) in RETIRED and (path.name, word) not in TRAVELS
    ]

    assert uses == []


def test_no_module_is_named_by_a_retired_word() -> None:
    assert [p for p in SOURCE if p.stem in RETIRED] == []
