"""`cortex fn ls`: what it lists, how it fits a terminal, and that thousands of rows take no time."""

import json
import time
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import asdict
from rich.cells import cell_len

from cortex.cli import fn as commands
from cortex.cli.client import Router
from cortex.cli.jobs import jobs
from cortex.functions.lifecycle import State
from cortex.router.api_types import DownloadView, FunctionView, InstanceView, JobsAnswer
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


def test_a_list_without_a_match_says_which_states_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    output = listed(monkeypatch, ROWS, "--state", "warm")

    assert output == "No function matches; now there are 2 ready, 1 cold.\n"


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


# On a terminal.

ERROR = "the fetch of its weights failed: the hub answered 403 for org/large-model-with-a-long-name (gated)\nask for it"
LONG = "organisation/A-Very-Large-Model-With-A-Name-Of-Many-Parts-235B-A22B-Instruct-2507-GGUF:UD-Q4_K_XL"


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, width: int, rows: list[FunctionView]) -> list[str]:
    monkeypatch.setattr("cortex.cli.tables.terminal_width", lambda: width)
    return listed(monkeypatch, rows).splitlines()


def coming(id: str, state: State, **rest: Any) -> FunctionView:
    values = asdict(an_instance(function=id, state=state)) | {"host": "gpu-1.example.org", **rest}
    return FunctionView(id=id, now=0.0, engine="llamacpp", state=state, instances=(InstanceView(**values),))


def test_a_long_state_is_one_line_below_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = FunctionView(id="org/large", now=0.0, engine="vllm", state="failing", retry_at=60.0, failure=ERROR)
    fetching = coming(LONG, State.FETCHING, phase=f"waiting: {ERROR}", progress=0.41)

    header, first, second, third, empty, *below = on_a_terminal(monkeypatch, 80, [failing, fetching, ROWS[0]])

    assert [line.split()[0] for line in (header, first, third)] == ["FUNCTION", "org/large", "org/small"]
    assert " failing " in first
    assert " fetching 41% " in second
    assert all(len(line) <= 80 for line in (header, first, second, third))
    assert empty == ""
    joined = " ".join(ERROR.split())
    assert below == [
        f"org/large: failing (retry in 1m00s); {joined}",
        f"{LONG}: fetching, waiting: {joined} 41%",
    ]


def test_eighty_columns_are_enough_for_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [coming(LONG, State.STARTING, progress=0.4, memory_mb=123_456, memory_from="measured"), *ROWS]

    header, first, *_ = on_a_terminal(monkeypatch, 80, rows)

    assert {"FUNCTION", "STATE", "FLIGHT", "IDLE"} <= set(header.split())
    assert header.index("STATE") == first.index("starting 40%")
    assert first.startswith("organisation/A-Very-")
    assert "…" in first
    assert first.split()[0].endswith("UD-Q4_K_XL")
    assert len(first) <= 80


def test_a_wide_terminal_and_a_pipe_have_every_column(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, *_ = on_a_terminal(monkeypatch, 250, ROWS)
    monkeypatch.undo()
    pipe, *_ = listed(monkeypatch, [*ROWS, a_row(LONG)]).splitlines()

    columns = "FUNCTION ALIASES ENGINE STATE INSTANCES HOST MEMORY MIB IN FLIGHT LAST USED IDLE IN"
    assert (" ".join(wide.split()), " ".join(pipe.split())) == (columns, columns)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 160])
def test_no_line_of_the_table_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    rows = [coming(LONG, State.STARTING, memory_mb=123_456, memory_from="measured"), *ROWS]

    assert all(cell_len(line) <= width for line in on_a_terminal(monkeypatch, width, rows))


def test_the_error_of_a_download_is_one_line_below_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = DownloadView(id="j1", host="gpu-1", source=LONG, state="failed", active=False, why=ERROR)
    monkeypatch.setattr("cortex.cli.tables.terminal_width", lambda: 80)
    monkeypatch.setattr(Router, "jobs", lambda self, host: JobsAnswer(jobs=(failed,), away={}))

    header, row, empty, below = CliRunner().invoke(jobs, ["ls"]).output.splitlines()

    assert (header.split()[0], empty) == ("WEIGHTS", "")
    assert " failed " in row
    assert max(len(header), len(row)) <= 80
    assert below == f"{LONG} on gpu-1: {' '.join(ERROR.split())}"
