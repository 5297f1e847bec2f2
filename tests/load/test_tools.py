"""What the tools' reports say, and how a run is judged."""

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.load.__main__ import Run
from tests.load.tools import Report, read_aiperf, read_guidellm

GOOD = Run(
    tool="t",
    function="f",
    report=Report(finished=2, cancelled=1, errors=0, requests_per_s=1, first_token_p50_ms=1, first_token_p99_ms=1),
    errors=0,
    disconnects=1,
)


def test_guidellms_report_is_the_sum_of_its_benchmarks(tmp_path: Path) -> None:
    def benchmark(*counts: int, p50: float) -> dict[str, Any]:
        totals = dict(zip(("successful", "incomplete", "errored"), counts, strict=True))
        first = {"successful": {"percentiles": {"p50": p50, "p99": 10 * p50}}}
        return {"duration": 10, "metrics": {"request_totals": totals, "time_to_first_token_ms": first}}

    report = {"benchmarks": [benchmark(30, 4, 0, p50=5), benchmark(10, 8, 1, p50=9), benchmark(20, 2, 0, p50=7)]}
    (tmp_path / "report.json").write_text(json.dumps(report))

    assert read_guidellm(tmp_path) == Report(
        finished=60, cancelled=14, errors=1, requests_per_s=2, first_token_p50_ms=7, first_token_p99_ms=90
    )


def test_cancellations_in_aiperfs_report_are_no_errors(tmp_path: Path) -> None:
    errors = [("RequestCancellationError", 5), ("HTTPError", 2)]
    report = {
        "request_count": {"avg": 40.0},
        "request_throughput": {"avg": 4.0},
        "time_to_first_token": {"p50": 7, "p99": 90},
        "error_summary": [{"error_details": {"type": kind}, "count": count} for kind, count in errors],
    }
    (tmp_path / "profile_export_aiperf.json").write_text(json.dumps(report))

    assert read_aiperf(tmp_path) == Report(
        finished=40, cancelled=5, errors=2, requests_per_s=4, first_token_p50_ms=7, first_token_p99_ms=90
    )


def test_a_run_without_errors_and_with_cancellations_is_right() -> None:
    assert GOOD.wrong() == []


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (replace(GOOD, errors=3), "the router counted 3 errors"),
        (replace(GOOD, disconnects=0), "the router saw no client leave"),
        (replace(GOOD, report=replace(GOOD.report, errors=1)), "the tool reports 1 errors"),
        (replace(GOOD, report=replace(GOOD.report, finished=0)), "no request was finished"),
        (replace(GOOD, report=replace(GOOD.report, cancelled=0)), "no request was cancelled"),
    ],
)
def test_everything_else_is_wrong(run: Run, expected: str) -> None:
    assert run.wrong() == [expected]
