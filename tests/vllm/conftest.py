"""Real vLLM, on the CPU. Not part of the default run: `just test-vllm` installs it and says where it is."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import tiny_vllm
from tests.support.catalogues import entry
from tests.support.stack import own_redis
from tests.vllm.host import VllmHost

HOME = os.environ.get("CORTEX_TEST_VLLM", "")
collect_ignore_glob = [] if HOME else ["test_*.py"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models with different weights."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two")):
        python = Path(HOME) / "bin" / "python"
        subprocess.run([python, tiny_vllm.__file__, folder / name, str(seed)], check=True, capture_output=True)
    for seed, name in enumerate(("tuned", "other")):
        tiny_vllm.write_adapter(folder / name, seed)
    tiny_vllm.write_adapter(folder / "misfit", 0, hidden=96)
    return folder


@pytest.fixture(scope="session")
def host(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmHost]:
    """A host with a CPU on which one of the models fits at a time."""
    folder = tmp_path_factory.mktemp("host")
    common = {"engine": "vllm", "vram_mb": 3000, "context": 256, "tool_parser": "hermes", "idle_after_s": 600}
    catalogue = "\n".join(
        [
            entry("tiny/one", source=str(models / "one"), **common),
            entry("tiny/two", source=str(models / "two"), **common),
            # The same worker, but for a variable that is read while importing: no launcher takes it.
            entry("tiny/plain", source=str(models / "one"), env={"TORCH_CORTEX_TEST": "1"}, **common),
            entry("tiny/base", source=str(models / "one"), **common),
            *(entry(f"tiny/{n}", base="tiny/base", adapter=str(models / n)) for n in ("tuned", "other", "misfit")),
            entry("tiny/broken", source=str(models / "one"), args=["--no-such-argument"], **common),
        ]
    )
    with own_redis(folder) as url, VllmHost(folder, url, catalogue, HOME) as running:
        running.http = httpx.Client(base_url=running.url, timeout=600, trust_env=False)
        yield running
