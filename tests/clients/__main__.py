"""`python -m tests.clients [--client NAME]… [--case NAME]… [--keep]`: run every client through every case."""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from cortex.platform.weights.demo_model import write_bigram
from tests.clients.cases import CASES, PNG, TEXT, Case, catalogue
from tests.clients.clients import CLIENTS, Place, Ran
from tests.clients.install import install
from tests.support import program
from tests.support.stack import Stack, eventually

INSIDE = "CORTEX_TEST_CLIENTS_INSIDE"
OFFLINE = 'ip link set lo up && exec "$@"'


def main() -> int:
    """Install, go where there is no network, run."""
    parser = argparse.ArgumentParser(prog="just test-clients", description=__doc__)
    parser.add_argument("--client", action="append", default=[], help="only clients whose name begins so")
    parser.add_argument("--case", action="append", default=[], help="only cases whose name begins so")
    parser.add_argument("--keep", action="store_true", help="keep the scratch folder, with what every client said")
    options = parser.parse_args()
    if INSIDE not in os.environ:
        clients = install()
        # Loopback only: clients can reach cortex alone, and cortex can reach nothing else.
        unshare = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
        again = [sys.executable, "-m", "tests.clients", *sys.argv[1:]]
        env = {**os.environ, INSIDE: str(clients)}
        os.execvpe(unshare[0], [*unshare, "sh", "-c", OFFLINE, "sh", *again], env)  # and signals reach it
    scratch = Path(tempfile.mkdtemp(prefix="cortex-clients-"))
    try:
        chosen = [name for name in CLIENTS if _asked_for(name, options.client)]
        cases = [case for case in CASES if _asked_for(case.name, options.case)]
        return _run(scratch, Path(os.environ[INSIDE]), chosen, cases)
    finally:
        if options.keep:
            print(f"kept: {scratch}")
        else:
            shutil.rmtree(scratch, ignore_errors=True)


def _asked_for(name: str, begins: Sequence[str]) -> bool:
    return not begins or any(name.lower().startswith(b.lower()) for b in begins)


def _run(scratch: Path, clients: Path, chosen: Sequence[str], cases: Sequence[Case]) -> int:
    folder, weights = scratch / "work", scratch / "tiny.gguf"
    write_bigram(weights, TEXT, name="tiny")
    (scratch / "cortex").mkdir()
    stack = Stack(scratch / "cortex", catalogue(folder, weights))
    results: dict[str, dict[str, str]] = {}
    wrong: list[str] = []
    try:
        stack.until("small", "ready")
        for name in chosen:
            results[name] = {}
            for case in cases:
                ran, verdict, took_s = _one(name, case, scratch, clients, folder, stack)
                results[name][case.name] = f"[red]no[/] {took_s:.1f}" if verdict else f"[green]ok[/] {took_s:.1f}"
                print(f"{name}: {case.name}: {verdict or 'ok'} ({took_s:.1f} s)", flush=True)
                if verdict:
                    wrong.append(f"--- {name}: {case.name}: {verdict}\n{ran.output[-3000:]}")
    finally:
        stack.end()
    for output in wrong:
        print(output)
    table = Table(title="client × case, seconds")
    for head in ("client", *(case.name for case in cases)):
        table.add_column(head)
    for name, row in results.items():
        table.add_row(name, *row.values())
    Console(width=200).print(table)
    return 1 if wrong else 0


def _one(name: str, case: Case, scratch: Path, clients: Path, folder: Path, stack: Stack) -> tuple[Ran, str, float]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "square.png").write_bytes(PNG)
    home = scratch / "homes" / "".join(c if c.isalnum() else "-" for c in name)
    home.mkdir(parents=True, exist_ok=True)
    if case.cold:
        stack.cli("fn", "cool", case.cold, "--now")
        eventually(lambda: stack.state(case.cold) == "cold", what=f"{case.cold} to be cold")
    elif stack.state(case.model) == "cold":
        stack.cli("fn", "warm", case.model, "--wait")
    began = time.monotonic()
    # A conversation is known by its beginning, so no two clients begin one alike.
    own = replace(case, prompt=f"{case.prompt} ({name})")
    ran = CLIENTS[name](Place(clients, home, folder, stack.port), own)
    took_s = time.monotonic() - began
    (home / f"{case.model}.output").write_text(ran.output)
    return ran, case.judge(ran.output, ran.failed, folder), took_s


if __name__ == "__main__":
    sys.exit(program.run(main))
