"""What is asked of which function, and what has to come out."""

import base64
import json
import re
from pathlib import Path

from msgspec import Struct

from tests.support.catalogues import entry, fake, gguf

ANSWER = "The harbour is quiet tonight."
COLD_S = 3
# A red square of 16 by 16: some clients look into images before they send them.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAFklEQVR42mP4z8BAEmIY1TCqYfhqAACQ+f8B8u7oVwAAAABJRU5ErkJggg=="
)
TEXT = "Alpha alder. Alpha acorn. Amber alder."
ENGINES = ("vllm", "llama")


class Case(Struct, frozen=True):
    """`files` are those files that the client's tools have to have left behind, `cold` a function that is cold at the
    beginning."""

    name: str
    model: str
    prompt: str
    expect: str
    files: tuple[str, ...] = ()
    fails: bool = False
    cold: str = ""

    def judge(self, output: str, failed: bool, folder: Path) -> str:
        """Say what is wrong with what came out; nothing when it is right."""
        if not re.search(self.expect, output):
            return f"no {self.expect!r} in what it said"
        if missing := [name for name in self.files if not (folder / name).exists()]:
            return f"its tools did not make {', '.join(missing)}"
        if self.fails != failed:
            return "it did not fail" if self.fails else "it failed"
        return ""


CASES = (
    Case("plain", "real", "Say something.", r"(Alpha|Amber) (alder|acorn)"),
    *(Case(f"streamed ({e})", f"says-{e}", "Say something.", re.escape(ANSWER)) for e in ENGINES),
    *(Case(f"tool ({e})", f"one-{e}", "run echo", r"I have 1 results", files=("ran-1",)) for e in ENGINES),
    *(
        Case(f"two tools ({e})", f"two-{e}", "run echo twice", r"I have 2 results", files=("ran-1", "ran-2"))
        for e in ENGINES
    ),
    Case("image", "image", "look at square.png", r"I have 1 results and 1 images"),
    Case("error", "error", "Say something.", r"The script says so", fails=True),
    Case("cold start", "cold", "Say something.", re.escape(ANSWER), cold="cold"),
    # Only the substitute calls the tool; only the function that was requested reports what it returned.
    Case("substitute", "assistant", "run echo", r"I have 1 results", files=("ran-1",), cold="big"),
)


def catalogue(folder: Path, weights: Path) -> str:
    """The functions; `folder` is where clients work."""
    speaks = ("--tps", "100")
    return "\n".join(
        [
            gguf("real", str(weights), context=262144, target_concurrency=1),
            *(fake(f"says-{e}", "--shape", e, "--answer", ANSWER, *speaks) for e in ENGINES),
            *(fake(f"one-{e}", "--shape", e, *_calls(_runs(folder, 1)), *speaks) for e in ENGINES),
            *(fake(f"two-{e}", "--shape", e, *_calls(_runs(folder, 1) + _runs(folder, 2)), *speaks) for e in ENGINES),
            fake("image", *_calls(_looks(folder)), *speaks, vision=True),
            fake("error", "--fail-status", "400"),
            fake("cold", "--load-s", str(COLD_S), "--answer", ANSWER),
            entry("other", engine="fake", args=["--answer", "A title"]),
            fake("big", "--load-s", str(COLD_S), "--report-results", "--answer", "No result came.", *speaks),
            fake("small", "--calls", _plan(_runs(folder, 1)), "--answer", "The substitute goes on.", min=1),
            '[aliases]\nassistant = { use = "big", on_cold = { use = "small" } }\n',
        ]
    )


def _calls(calls: list[tuple[str, dict[str, str]]]) -> tuple[str, ...]:
    return ("--calls", _plan(calls), "--report-results", "--answer", "A title")


def _plan(calls: list[tuple[str, dict[str, str]]]) -> str:
    return json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls])


def _runs(folder: Path, number: int) -> list[tuple[str, dict[str, str]]]:
    """A call for each client's own tool that runs a command; only what is offered is called."""
    command = f"touch {folder}/ran-{number} && echo done"
    return [
        ("Bash", {"command": command, "description": "Makes a file"}),
        ("bash", {"command": command, "description": "Makes a file"}),
        ("exec_command", {"cmd": command}),
        ("run", {"command": command}),
    ]


def _looks(folder: Path) -> list[tuple[str, dict[str, str]]]:
    image = f"{folder}/square.png"
    return [
        ("Read", {"file_path": image}),
        ("read", {"filePath": image}),
        ("view_image", {"path": image}),
        ("look", {"path": image}),
    ]
