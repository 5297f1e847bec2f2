"""What `cortex import` prints of each tool is served, with the weights where that tool has them."""

import hashlib
import json
from pathlib import Path

import pytest

from cortex.platform.weights.demo_model import write_bigram
from tests.e2e.workers import EMPTY
from tests.support.stack import Stack

pytestmark = EMPTY

MODEL = "models/org/small-GGUF/small-Q4_K_M.gguf"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine on which all four tools serve one small model: llama-swap and LM Studio from a file, Ollama from its
    blob, and LiteLLM by way of Ollama."""
    folder = tmp_path_factory.mktemp("home")
    file = folder / ".lmstudio" / MODEL
    file.parent.mkdir(parents=True)
    write_bigram(file, "one two three one two", name="small")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    store = folder / ".ollama" / "models"
    (store / "blobs").mkdir(parents=True)
    (store / "blobs" / f"sha256-{digest}").write_bytes(file.read_bytes())
    manifest = store / "manifests" / "registry.ollama.ai" / "library" / "small" / "latest"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [layer]}))
    command = f"llama-server --port ${{PORT}} -m {file} -c 2048 -ngl 99 --temp 0"
    (folder / "llama-swap.yaml").write_text(f"models:\n  swapped:\n    cmd: {command}\n    aliases: [other]\n")
    deployment = "{model_name: proxied, litellm_params: {model: ollama/small, api_base: 'http://localhost:11434'}}"
    (folder / "litellm.yaml").write_text(f"model_list: [{deployment}]")
    return folder


@pytest.mark.parametrize(
    ("source", "name", "alias"),
    [
        ("llama-swap.yaml", "swapped", "other"),
        ("ollama", "small:latest", "small"),
        ("lm-studio", "org/small-GGUF", "small"),
        ("litellm.yaml", "proxied", "proxied"),
    ],
)
def test_what_is_imported_passes_the_check_and_answers(
    empty_stack: Stack, home: Path, source: str, name: str, alias: str
) -> None:
    path = str(home / source) if source.endswith(".yaml") else source

    result = empty_stack.cli("import", path, env={"HOME": str(home)})
    empty_stack.serve(result.stdout)
    checked = empty_stack.cli("check", str(empty_stack.models))
    answer = empty_stack.chat(alias, "one", max_tokens=3)

    assert (result.returncode, checked.returncode) == (0, 0), result.stderr + checked.stderr
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-cortex-function"] == name
    assert "one" in answer.json()["choices"][0]["message"]["content"]
