"""`cortex fn ls`: what it lists, and that thousands of rows take no time."""

import json
import time

import pytest
from click.testing import CliRunner
from msgspec.structs import asdict

from cortex.cli import fn as commands
from cortex.cli.client import Router
from cortex.router.api_types import FunctionView, InstanceView
from tests.support.factories import an_instance


def a_row(id: str, *, state: str = "cold", host: str = "", aliases: tuple[str, ...] = ()) -> FunctionView:
    instances = (InstanceView(**asdict(an_instance(function=id)) | {"host": host}),) if host else ()
    return FunctionView(id=id, now=0.0, aliases=aliases, engine="fake", state=state, instances=instances)


ROWS = [
    a_row("org/small", state="ready", host="a", aliases=("tiny",)),
    a_row("org/large", state="ready", host="b"),
    a_row("other/日本", aliases=("tiny-too",)),
]


def listed(monkeypatch: pytest.MonkeyPatch, rows: list[FunctionView], *args: str) -> str:
    monkeypatch.setattr(Router, "functions", lambda self: rows)
    result = CliRunner().invoke(commands.ls, list(args))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), ["org/small", "org/large", "other/日本"]),
        (("small",), ["org/small"]),
        (("tiny",), ["org/small", "other/日本"]),
        (("tiny*",), ["org/small", "other/日本"]),
        (("org/*",), ["org/small", "org/large"]),
        (("org",), ["org/small", "org/large"]),
        (("*large",), ["org/large"]),
        (("--state", "cold"), ["other/日本"]),
        (("--host", "b"), ["org/large"]),
        (("org*", "--host", "a", "--state", "ready"), ["org/small"]),
        (("nothing",), []),
    ],
)
def test_a_pattern_a_state_and_a_host_narrow_the_list(
    monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], expected: list[str]
) -> None:
    output = listed(monkeypatch, ROWS, *args)

    assert [line.split()[0] for line in output.splitlines()[1:]] == expected
    assert [f["id"] for f in json.loads(listed(monkeypatch, ROWS, *args, "--json"))] == expected


def test_columns_are_aligned_whatever_the_width_of_their_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    header, small, _, wide = listed(monkeypatch, ROWS).splitlines()

    column = header.index("ENGINE")
    assert small[column:].startswith("fake")
    assert wide[column - 2 :].startswith("fake")  # two characters take two columns each


def test_thousands_of_functions_are_listed_in_a_fraction_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [a_row(f"org/model-{n}", state="ready", host="a") for n in range(2000)]
    began = time.process_time()

    output = listed(monkeypatch, rows)

    assert len(output.splitlines()) == 2001
    assert time.process_time() - began < 0.5
