"""The tools, pinned: their command lines, and what their reports say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from tests.support.byte_tokenizer import NAME

STREAMS = (4, 8, 16)
"""guidellm's numbers of simultaneous requests, one after the other: it cancels those in flight at the end of each."""
CONCURRENCY = 8
CANCEL_PERCENT, CANCEL_AFTER_S = 25, 0.1
"""The share of requests that aiperf cancels, and when."""
PROMPT_TOKENS, ANSWER_TOKENS = 64, 32
_CANCELLED = "RequestCancellationError"


class Report(Struct, frozen=True, kw_only=True):
    """What a tool says of a run. Times to the first token in milliseconds."""

    finished: int
    cancelled: int
    errors: int
    requests_per_s: float
    first_token_p50_ms: float
    first_token_p99_ms: float


class Tool(Struct, frozen=True):
    """A tool from PyPI. `argv` takes the router's URL, a function, seconds and a folder; `read` takes the folder."""

    package: str
    argv: Callable[[str, str, int, Path], list[str]]
    read: Callable[[Path], Report]
    env: dict[str, str] = {}


def _guidellm(url: str, function: str, seconds: int, folder: Path) -> list[str]:
    return [
        *("guidellm", "run", "--disable-console"),
        *("--backend", f"kind=openai_http,target={url},model={function}"),
        *("--profile", "kind=concurrent,streams=1", "--override", "profile.streams", ",".join(map(str, STREAMS))),
        *("--constraint", f"kind=max_duration,seconds={max(1, seconds // len(STREAMS))}"),
        *("--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={ANSWER_TOKENS}"),
        *("--tokenizer", f"kind=huggingface_auto,model={NAME}"),
        *("--output", f"kind=json,path={folder / 'report.json'}"),
    ]


def read_guidellm(folder: Path) -> Report:
    """Read guidellm's report. `incomplete` are the requests that it has cancelled."""
    runs = json.loads((folder / "report.json").read_text())["benchmarks"]
    totals = [run["metrics"]["request_totals"] for run in runs]
    first = [run["metrics"]["time_to_first_token_ms"]["successful"] for run in runs]
    finished = sum(total["successful"] for total in totals)
    return Report(
        finished=finished,
        cancelled=sum(total["incomplete"] for total in totals),
        errors=sum(total["errored"] for total in totals),
        requests_per_s=finished / sum(run["duration"] for run in runs),
        first_token_p50_ms=sorted(run["percentiles"]["p50"] for run in first)[len(first) // 2],
        first_token_p99_ms=max(run["percentiles"]["p99"] for run in first),
    )


def _aiperf(url: str, function: str, seconds: int, folder: Path) -> list[str]:
    return [
        *("aiperf", "profile", "-m", function, "-u", url, "--endpoint-type", "chat", "--streaming"),
        *("--tokenizer", NAME, "--isl", str(PROMPT_TOKENS), "--osl", str(ANSWER_TOKENS)),
        *("--benchmark-duration", str(seconds), "--benchmark-grace-period", "10", "--concurrency", str(CONCURRENCY)),
        *("--request-cancellation-rate", str(CANCEL_PERCENT), "--request-cancellation-delay", str(CANCEL_AFTER_S)),
        *("--ui", "none", "--no-gpu-telemetry", "--no-server-metrics", "--artifact-dir", str(folder)),
    ]


def read_aiperf(folder: Path) -> Report:
    """Read aiperf's report. It counts the requests that it has cancelled as errors."""
    report: dict[str, Any] = json.loads((folder / "profile_export_aiperf.json").read_text())
    errors = {error["error_details"]["type"]: error["count"] for error in report["error_summary"]}
    cancelled = errors.pop(_CANCELLED, 0)
    return Report(
        finished=int(report["request_count"]["avg"]),
        cancelled=cancelled,
        errors=sum(errors.values()),
        requests_per_s=report["request_throughput"]["avg"],
        first_token_p50_ms=report["time_to_first_token"]["p50"],
        first_token_p99_ms=report["time_to_first_token"]["p99"],
    )


TOOLS = {
    "guidellm": Tool("guidellm==0.8.1", _guidellm, read_guidellm, {"GUIDELLM__MAX_WORKER_PROCESSES": "1"}),
    "aiperf": Tool("aiperf==0.13.0", _aiperf, read_aiperf),
}
