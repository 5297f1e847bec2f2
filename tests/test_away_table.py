"""The table of docs/operating.md that says what goes on when something is away: each cell is held by a test."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REDIS, DEMOTED, EMPTIED = "Redis away", "Redis demoted", "Redis emptied"
AGENT, CUT_AGENT, CUT_ROUTER, HUB = "agent away", "agent cut off from Redis", "router cut off from Redis", "hub away"
COLUMNS = (REDIS, DEMOTED, EMPTIED, AGENT, CUT_AGENT, CUT_ROUTER, HUB)

WARM_GOES_ON = "test_without_redis_warm_functions_are_served"
SILENT = "test_a_warm_function_is_served_while_its_agent_is_dead_and_after_its_return"
CUT_OFF = "test_a_warm_function_is_served_while_its_agent_cannot_reach_redis"
REFUSES_WRITES = "test_with_a_read_only_redis_warm_functions_are_served"
EMPTY = "test_an_emptied_redis_does_not_interrupt_warm_functions"
NOT_IDLE = "test_no_instance_is_drained_or_evicted_while_the_record_is_away"
DEMOTION = "test_after_a_demotion_cold_starts_work_and_warm_functions_are_served"
FAILOVER = "test_after_a_failover_calls_bells_and_jobs_use_the_new_master"
ONLY_THE_WORKER_KNOWS = "test_a_request_unknown_to_routers_delays_a_drain"
HUB_DOWN = "test_an_unreachable_hub_is_an_error_with_the_folder_for_files"

HELD_BY = {
    "router": (WARM_GOES_ON, DEMOTION, EMPTY, SILENT, CUT_OFF, WARM_GOES_ON, HUB_DOWN),
    "agent": (
        NOT_IDLE,
        DEMOTION,
        "test_after_an_empty_record_no_instance_is_idle_until_routers_had_time_to_report",
        "test_a_worker_that_died_while_the_agent_was_away_is_replaced_and_leaves_no_child",
        NOT_IDLE,
        ONLY_THE_WORKER_KNOWS,
        HUB_DOWN,
    ),
    "job worker": (
        "test_a_download_of_a_killed_job_worker_resumes",
        FAILOVER,
        "test_a_dequeued_job_that_never_started_is_listed_and_requeued",
        "test_a_slow_download_continues_after_its_request",
        "test_a_slow_download_continues_after_its_request",
        "test_a_slow_download_continues_after_its_request",
        "test_a_failing_hub_is_retried",
    ),
    "CLI": (WARM_GOES_ON, REFUSES_WRITES, EMPTY, SILENT, CUT_OFF, WARM_GOES_ON, HUB_DOWN),
    "worker": (WARM_GOES_ON, REFUSES_WRITES, EMPTY, SILENT, CUT_OFF, WARM_GOES_ON, HUB_DOWN),
    "what says so": (WARM_GOES_ON, REFUSES_WRITES, EMPTY, SILENT, CUT_OFF, WARM_GOES_ON, HUB_DOWN),
}


def table() -> dict[str, dict[str, str]]:
    """Return the cells of the table by row and column."""
    section = (ROOT / "docs" / "operating.md").read_text().split("## When something is away")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert all(len(row) == len(head) for row in rows)
    return {row[0].strip("*"): dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_the_table_has_every_process_and_every_dependency() -> None:
    cells = table()

    assert list(cells) == list(HELD_BY)
    assert all(tuple(row) == COLUMNS for row in cells.values())
    assert all(cell for row in cells.values() for cell in row.values())


@pytest.fixture(scope="module")
def tests_there_are() -> set[str]:
    matches: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        matches.update(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE))
    return matches


@pytest.mark.parametrize("row", HELD_BY)
def test_every_cell_names_an_existing_test(row: str, tests_there_are: set[str]) -> None:
    assert len(HELD_BY[row]) == len(COLUMNS)
    assert set(HELD_BY[row]) - tests_there_are == set()
