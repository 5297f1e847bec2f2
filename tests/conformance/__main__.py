"""`python -m tests.conformance [--format NAME]… [--function NAME]…`: run llm-comply, print a table."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cortex.platform.weights.demo_model import write_bigram
from tests.conformance.exceptions import EVERY, EXCEPTIONS, LLAMA, LLAMA_SHAPE, REASONS, VLLM_SHAPE, Result, verdicts
from tests.support import program
from tests.support.catalogues import aliases, fake, gguf
from tests.support.stack import Stack, eventually

SUITE = "llm-comply==0.5.0"
FORMATS = ("open-responses", "openai-chat", "anthropic")
PATIENCE_S = 300
TEXT = "Alpha alder. Alpha acorn. Amber alder."
ANSWER = "The harbour is quiet tonight."
ALIAS = "{}-as-o3-and-claude-4"
"""The suite asks only models of such names to reason."""


def main() -> int:
    """Start cortex, run the suite for each format and function, and judge."""
    parser = argparse.ArgumentParser(prog="just test-conformance", description=__doc__)
    parser.add_argument("--format", action="append", choices=FORMATS, help="only this format; may be repeated")
    parser.add_argument("--function", action="append", choices=EVERY, help="only this function; may be repeated")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cortex-conformance-") as scratch:
        weights, home = Path(scratch) / "tiny.gguf", Path(scratch) / "cortex"
        write_bigram(weights, TEXT, name="tiny")
        home.mkdir()
        stack = Stack(home, catalogue(weights))
        try:
            # The host reads the template some seconds after its own start; until then nobody knows about tools.
            eventually(lambda: knows_tools(stack, LLAMA), within_s=60, what="the host to have read the template")
            results = [
                result
                for format in options.format or FORMATS
                for function in options.function or EVERY
                for result in run(stack.url, format, function)
            ]
        finally:
            stack.end()
    show(results)
    wrong = [*verdicts(results)]
    for line in wrong:
        print(f"WRONG {line}")
    return 1 if wrong else 0


def knows_tools(stack: Stack, function: str) -> bool:
    """Return whether the router knows if a model can call tools."""
    return stack.http.get(f"/v1/models/{function}").json().get("tool_call") is not None


def catalogue(weights: Path) -> str:
    """A real llama.cpp, the fake engine in both shapes, and one that reasons."""
    calls = ("--call-tool", "--answer", ANSWER, "--tps", "200")
    return "\n".join(
        [
            gguf(LLAMA, str(weights), context=4096),
            fake(VLLM_SHAPE, "--shape", "vllm", *calls, vision=True),
            fake(LLAMA_SHAPE, "--shape", "llama", *calls, vision=True),
            fake(REASONS, "--shape", "vllm", "--reasoning-tokens", "8", *calls, vision=True),
            aliases({ALIAS.format(name): name for name in EVERY}),
        ]
    )


def run(url: str, format: str, function: str) -> list[Result]:
    """Run the suite in one format against one function."""
    print(f"{SUITE}: {format} of {function}", flush=True)
    argv = ["uvx", "--from", SUITE, "llm-comply", "--json", "--format", format, "-u", f"{url}/v1", "-k", "any"]
    argv += ["-m", ALIAS.format(function)]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    try:
        cases = json.loads(ran.stdout)["results"]
    except (ValueError, KeyError):
        raise SystemExit(f"{SUITE} gave no results (code {ran.returncode}):\n{ran.stdout}\n{ran.stderr}") from None
    return [
        Result(
            format=format,
            function=function,
            case=case["id"],
            passed=case["status"] == "passed",
            errors=tuple(case.get("errors") or ()),
        )
        for case in cases
    ]


def show(results: Sequence[Result]) -> None:
    """Print what passes, and why the rest does not."""
    table = Table(title=f"{SUITE}: case × function", show_lines=False)
    functions = [name for name in EVERY if any(r.function == name for r in results)]
    for head in ("format", "case", *functions, "why not"):
        table.add_column(head)
    for format, case in dict.fromkeys((r.format, r.case) for r in results):
        row = {r.function: r for r in results if (r.format, r.case) == (format, case)}
        cells = ["[green]ok[/]" if row[name].passed else "[yellow]no[/]" for name in functions]
        why = dict.fromkeys(e.why for r in row.values() if not r.passed for e in EXCEPTIONS if e.covers(r))
        table.add_row(format, case, *cells, "; ".join(why))
    Console(width=200).print(table)
    passed = sum(r.passed for r in results)
    print(f"{passed} of {len(results)} cases pass")


if __name__ == "__main__":
    sys.exit(program.run(main))
