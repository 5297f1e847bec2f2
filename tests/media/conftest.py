"""Where the servers are, a cortex that runs them, and OpenAI's client. Not part of the default run."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.support.catalogues import entry
from tests.support.stack import Stack

HOME = os.environ.get("CORTEX_TEST_MEDIA", "")
PROGRAMS = Path(__file__).parent / "programs"
collect_ignore_glob = [] if HOME else ["test_*.py"]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A cortex with both servers, cold. docs/functions.md has these entries for operators."""
    folder = tmp_path_factory.mktemp("media")
    weights, programs = folder / "weights", Path(HOME) / "bin"
    subprocess.run([programs / "python", PROGRAMS / "make_weights.py", weights], check=True, capture_output=True)
    catalogue = "\n".join(
        [
            entry(
                "hears",
                engine="command",
                task="transcribe",
                source=str(weights / "whisper"),
                command=[str(programs / "faster-whisper-server"), "--host", "{host}", "--port", "{port}", "{source}"],
                health_path="/health",
                vram_mb=300,
            ),
            entry(
                "speaks",
                engine="command",
                task="speech",
                command=[str(programs / "local-tts"), "--host", "{host}", "--port", "{port}"],
                env={"LOCAL_TTS_DATA_DIR": str(weights / "local-tts")},
                health_path="/api/health",
                served_name="tts-1",
                vram_mb=300,
            ),
        ]
    )
    stack = Stack(folder, catalogue)
    try:
        yield stack
    finally:
        stack.end()


@pytest.fixture(scope="session")
def client(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0, timeout=120)
