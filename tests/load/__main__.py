"""`python -m tests.load [--tool NAME]… [--function NAME]… [--seconds N]`: load by others' tools, and a table."""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import httpx
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from cortex.platform.weights.demo_model import write_bigram
from tests.load.tools import TOOLS, Report, Tool
from tests.support import program
from tests.support.byte_tokenizer import write_cache
from tests.support.catalogues import fake, gguf
from tests.support.stack import Stack, eventually

FUNCTIONS = ("llamacpp", "fake")
TEXT = "Alpha alder. Alpha acorn. Amber alder."
PYTHON = "3.11"
"""Both tools run on it, whatever runs cortex."""
START_S = 200
"""How long a tool may take beside its load: it is installed the first time."""


class Run(Struct, frozen=True):
    """One run: the tool's report, and what the router has counted meanwhile."""

    tool: str
    function: str
    report: Report
    errors: int
    disconnects: int

    def wrong(self) -> list[str]:
        """Say what is wrong with it."""
        return [
            text
            for text, is_wrong in {
                f"the tool reports {self.report.errors} errors": self.report.errors,
                f"the router counted {self.errors} errors": self.errors,
                "no request was finished": not self.report.finished,
                "no request was cancelled": not self.report.cancelled,
                "the router saw no client leave": not self.disconnects,
            }.items()
            if is_wrong
        ]


def main() -> int:
    """Start cortex, run each tool against each function, and judge."""
    parser = argparse.ArgumentParser(prog="just test-load", description=__doc__)
    parser.add_argument("--tool", action="append", choices=TOOLS, help="only this tool; may be repeated")
    parser.add_argument("--function", action="append", choices=FUNCTIONS, help="only this function; may be repeated")
    parser.add_argument("--seconds", type=int, default=60, help="how long each run lasts (60)")
    options = parser.parse_args()
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="cortex-load-") as scratch:
        folder = Path(scratch)
        (folder / "cortex").mkdir()
        write_bigram(folder / "tiny.gguf", TEXT, name="tiny")
        env = write_cache(folder / "hub-cache")
        stack = Stack(folder / "cortex", catalogue(folder / "tiny.gguf"))
        try:
            for name, function in itertools.product(options.tool or TOOLS, options.function or FUNCTIONS):
                runs.append(run(name, function, options.seconds, folder / f"{name}-{function}", stack, env))
        finally:
            stack.end()
    show(runs)
    wrong = [f"WRONG {run.tool}: {run.function}: {text}" for run in runs for text in run.wrong()]
    print("\n".join(wrong) or "0 errors")
    return 1 if wrong else 0


def catalogue(weights: Path) -> str:
    """A real llama.cpp with four slots, and the fake engine."""
    return "\n".join(
        [
            gguf("llamacpp", str(weights), context=4096, target_concurrency=4),
            fake("fake", "--tps", "100", "--answer", " ".join(["word"] * 32), target_concurrency=32),
        ]
    )


def run(name: str, function: str, seconds: int, folder: Path, stack: Stack, env: dict[str, str]) -> Run:
    """Run a tool against a function, which is warm."""
    tool: Tool = TOOLS[name]
    folder.mkdir()
    stack.cli("fn", "warm", function, "--wait")
    before = counters(stack)
    print(f"{tool.package}: {function} for {seconds} s", flush=True)
    argv = ["uvx", "--python", PYTHON, "--from", tool.package, *tool.argv(stack.url, function, seconds, folder)]
    ran = subprocess.run(
        argv,
        env={**os.environ, **env, **tool.env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds + START_S,
        check=False,
    )
    if ran.returncode:
        raise SystemExit(f"{tool.package} ended with code {ran.returncode}:\n{ran.stdout[-5000:]}")
    eventually(lambda: not stack.http.get("/admin/requests").json()["requests"], what="no request in flight")
    now = counters(stack)
    return Run(
        name, function, tool.read(folder), *(after - earlier for after, earlier in zip(now, before, strict=True))
    )


def counters(stack: Stack) -> tuple[int, int]:
    """Return the router's counts of errors and of clients that left."""
    text = httpx.get(f"http://{stack.env['CORTEX_GATEWAY__METRICS_LISTEN']}/metrics", trust_env=False).text
    sums = dict.fromkeys(("cortex_request_errors_total", "cortex_client_disconnects_total"), 0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in sums:
                sums[sample.name] += int(sample.value)
    errors, disconnects = sums.values()
    return errors, disconnects


def show(runs: Sequence[Run]) -> None:
    """Print the numbers."""
    table = Table(title="load by tools of others", show_lines=False)
    for head in ("tool", "function", "finished", "cancelled", "errors", "requests/s", "first token p50, p99 ms"):
        table.add_column(head, justify="left" if head in ("tool", "function") else "right")
    for one in runs:
        report = one.report
        table.add_row(
            TOOLS[one.tool].package,
            one.function,
            str(report.finished),
            str(report.cancelled),
            str(report.errors + one.errors),
            f"{report.requests_per_s:.1f}",
            f"{report.first_token_p50_ms:.0f}, {report.first_token_p99_ms:.0f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(program.run(main))
