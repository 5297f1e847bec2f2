"""`cortex import`: files as other tools have them, what becomes of them, and the notes on the rest."""

import hashlib
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cortex.cli.check import check
from cortex.cli.exits import Failed
from cortex.cli.import_models import import_models
from cortex.platform.weights.demo_model import write_bigram
from tests.support.histogram import write_histogram

LLAMA_SWAP = """
# yaml-language-server: $schema=https://example.org/config-schema.json
healthCheckTimeout: 500
logLevel: info
startPort: 10001
globalTTL: 0
apiKeys: ["sk-hunter2"]
macros:
  "latest-llama": >
    /opt/llama.cpp/build/bin/llama-server
    --port ${PORT} --jinja
  "default_ctx": 4096
  "args": "--ctx-size ${default_ctx}"
models:
  "gpt-oss-120b":
    macros: {"default_ctx": 16384, "temp": 0.7}
    cmd: |
      # the macro is defined above
      ${latest-llama}
      --model models/gpt.gguf
      ${args} --temperature ${temp} --top-k 40 -ngl 999 -fa on --api-key ${env.API_KEY}
    env: ["CUDA_VISIBLE_DEVICES=0,1", "GGML_LOG=1"]
    ttl: 60
    useModelName: "openai/gpt-oss-120B"
    aliases: ["gpt-4o-mini", {id: "gpt-4o", unlisted: true}]
    filters:
      stripParams: "temperature, top_p"
      setParams: {top_p: 0.9, chat_template_kwargs: {reasoning_effort: high}, mirostat: 1}
    name: "gpt-oss"
  "qwen":
    cmd: llama-server --port ${PORT} -hf unsloth/Qwen3-8B-GGUF:Q4_K_M -np 4 -c 32768 -ngl 20 --tensor-split 1,1
    unlisted: true
  "embeds":
    cmd: env A=b llama-server -m /nowhere/e5.gguf --embedding --port ${PORT}
  "coder":
    cmd: >
      vllm serve Qwen/Qwen3-Coder-30B --port ${PORT} --max-model-len 32768 --tensor-parallel-size=2
      --gpu-memory-utilization 0.9 --enable-auto-tool-choice --tool-call-parser hermes --enable-prefix-caching
  "docker":
    proxy: "http://127.0.0.1:${PORT}"
    cmd: docker run --rm -p ${PORT}:8080 ghcr.io/org/server
    cmdStop: docker stop docker
    checkEndpoint: /ready
  "no-macro": {cmd: "${missing} -m x.gguf"}
  "json": {cmd: "server --port 9000 --options {\\"a\\":{x}}", proxy: "http://127.0.0.1:9000"}
hooks: {on_startup: {preload: ["qwen"]}}
groups: {"all": {swap: false, members: ["qwen"]}}
"""

LITELLM = """
model_list:
  - model_name: local
    litellm_params:
      model: ollama_chat/qwen3:8b
      api_base: http://localhost:11434
      temperature: 0.2
      rpm: 60
  - model_name: big
    litellm_params:
      model: hosted_vllm/Qwen/Qwen3-32B
      api_base: http://gpu-1:8000/v1
      api_key: sk-secret-value
      max_tokens: 2000
      timeout: 30
    model_info: {input_cost_per_token: 0.0000001, output_cost_per_token: 0.0000004, supports_vision: true}
  - model_name: big
    litellm_params: {model: hosted_vllm/Qwen/Qwen3-32B, api_base: "http://gpu-2:8000/v1"}
  - model_name: big
    litellm_params: {model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY}
  - model_name: gpt-4o
    litellm_params: {model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY}
  - model_name: "*"
    litellm_params: {model: "openrouter/*"}
litellm_settings: {drop_params: true}
general_settings: {master_key: sk-1234}
router_settings:
  routing_strategy: simple-shuffle
  model_group_alias: {"gpt-4": "big"}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own, without any variable that moves a cache."""
    for name in [n for n in os.environ if n.startswith(("OLLAMA_", "HF_", "XDG_", "LLAMA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("API_KEY", "a-secret-of-the-environment")
    return tmp_path


def run(*args: str) -> Result:
    return CliRunner().invoke(import_models, list(args))


def imported(home: Path, *args: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any], str]:
    """Import, and check the result with `cortex check`; return its entries by id, the whole of it, and the notes."""
    result = run(*args)
    assert result.exit_code == 0, result.output
    path = home / "models.toml"
    path.write_text(result.stdout)
    checked = CliRunner().invoke(check, [str(path)])
    assert (checked.exit_code, "no problems" in checked.output) == (0, True), checked.output
    whole = tomllib.loads(result.stdout)
    assert CliRunner().invoke(import_models, [*args, "--json"]).exit_code == 0
    return {m["id"]: m for m in whole["models"]}, whole, result.stderr


def a_store(folder: Path, models: dict[str, dict[str, bytes]]) -> None:
    """Write models as Ollama keeps them: by `registry/namespace/model/tag`, the contents of their layers by kind."""
    (folder / "blobs").mkdir(parents=True)
    for name, layers in models.items():
        written = []
        for kind, content in layers.items():
            digest = hashlib.sha256(content).hexdigest()
            (folder / "blobs" / f"sha256-{digest}").write_bytes(content)
            media = f"application/vnd.ollama.image.{kind}"
            written.append({"mediaType": media, "digest": f"sha256:{digest}", "size": len(content)})
        manifest = {"schemaVersion": 2, "config": {"digest": "sha256:" + "0" * 64}, "layers": written}
        path = folder / "manifests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(manifest))


def weights(folder: Path, *, embeds: bool = False) -> bytes:
    path = folder / "some.gguf"
    if embeds:
        write_histogram(path, "one two three", name="embeds")
    else:
        write_bigram(path, "one two three one two", name="some")
    return path.read_bytes()


def test_each_command_line_of_llama_swap_becomes_an_entry(home: Path) -> None:
    (home / "models").mkdir()
    (home / "models" / "gpt.gguf").write_bytes(b"GGUF")
    (home / "config.yaml").write_text(LLAMA_SWAP)

    models, whole, _ = imported(home, str(home / "config.yaml"))

    assert models == {
        "gpt-oss-120b": {
            "id": "gpt-oss-120b",
            "engine": "llamacpp",
            "source": str(home / "models" / "gpt.gguf"),
            "context": 16384,
            "target_concurrency": 1,
            "sampling": {"temperature": 0.7, "top_k": 40, "top_p": 0.9},
            "chat_template_kwargs": {"reasoning_effort": "high"},
            "args": ["--jinja", "-fa", "on"],
            "env": {"GGML_LOG": "1"},
            "idle_after_s": 60,
        },
        "qwen": {
            "id": "qwen",
            "engine": "llamacpp",
            "source": "unsloth/Qwen3-8B-GGUF",
            "quant": "Q4_K_M",
            "context": 8192,
            "target_concurrency": 4,
            "args": ["--n-gpu-layers", "20"],
            "baseline": True,
        },
        "embeds": {
            "id": "embeds",
            "engine": "llamacpp",
            "source": "/nowhere/e5.gguf",
            "task": "embed",
            "target_concurrency": 1,
            "env": {"A": "b"},
        },
        "coder": {
            "id": "coder",
            "engine": "vllm",
            "source": "Qwen/Qwen3-Coder-30B",
            "context": 32768,
            "min_devices": 2,
            "tool_parser": "hermes",
            "args": ["--enable-prefix-caching"],
        },
        "docker": {
            "id": "docker",
            "engine": "command",
            "command": ["docker", "run", "--rm", "-p", "{port}:8080", "ghcr.io/org/server"],
            "health_path": "/ready",
        },
    }
    assert whole["aliases"] == {"gpt-4o-mini": "gpt-oss-120b", "gpt-4o": "gpt-oss-120b"}
    assert whole["defaults"] == {"idle_after_s": 31_536_000, "start_timeout_s": 500}


def test_what_llama_swap_has_and_cortex_has_not_is_listed_without_secrets(home: Path) -> None:
    (home / "config.yaml").write_text(LLAMA_SWAP)
    result = run(str(home / "config.yaml"))

    for note in (
        "apiKeys is not carried over",
        "groups is not carried over",
        "no-macro: left out: the macro missing is not defined",
        "json: left out: ",
        "gpt-oss-120b: filters.stripParams is not carried over",
        "gpt-oss-120b: filters.setParams.mirostat is not carried over",
        "gpt-oss-120b: CUDA_VISIBLE_DEVICES is not carried over",
        "gpt-oss-120b: name is not carried over",
        "qwen: --tensor-split is not carried over",
        "qwen: unlisted is not carried over",
        "embeds: /nowhere/e5.gguf is not on this machine",
        "coder: --gpu-memory-utilization is not carried over",
        "docker: cmdStop is not carried over",
    ):
        assert f"note: {note}" in result.stderr
    for secret in ("sk-hunter2", "a-secret-of-the-environment"):
        assert secret not in result.output


def test_values_of_the_environment_that_become_part_of_an_entry_are_noted(home: Path) -> None:
    (home / "config.yaml").write_text(
        "macros: {key: '${env.API_KEY}'}\n"
        "models:\n"
        "  dropped: {cmd: 'llama-server -m x.gguf --api-key ${key}'}\n"
        "  written: {cmd: 'myserver --port ${PORT} --key ${key}', env: ['A=${env.API_KEY}']}\n"
        "  lost: {cmd: llama-server -m x.gguf, filters: {setParams: {chat_template_kwargs: {x: 1.5, y: true}}}}\n"
    )

    notes = run(str(home / "config.yaml")).stderr

    assert "note: written: the value of API_KEY is written out here, and may be secret" in notes
    assert "dropped: the value" not in notes
    assert "note: lost: filters.setParams.chat_template_kwargs.x is not carried over" in notes


def test_weights_in_the_caches_of_llama_cpp_and_huggingface_are_used_where_they_are(home: Path) -> None:
    cached = home / ".cache" / "llama.cpp" / "unsloth_Qwen3-8B-GGUF_Qwen3-8B-Q4_K_M.gguf"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"GGUF")
    hub = home / ".cache" / "huggingface" / "hub" / "models--Qwen--Qwen3-Coder-30B"
    snapshot = hub / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("abc123")
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    (home / "config.yaml").write_text(LLAMA_SWAP)

    models, _, _ = imported(home, str(home / "config.yaml"))

    assert models["qwen"]["source"] == str(cached)
    assert "quant" not in models["qwen"]
    assert models["coder"]["source"] == str(snapshot)


def test_each_model_of_ollama_is_served_from_its_blob(home: Path) -> None:
    store = home / ".ollama" / "models"
    gguf = weights(home)
    a_store(
        store,
        {
            "registry.ollama.ai/library/qwen3/8b": {
                "model": gguf,
                "template": b"{{ .Prompt }}",
                "params": json.dumps(
                    {"temperature": 0.6, "num_ctx": 8192, "stop": ["<|im_end|>"], "mirostat": 1}
                ).encode(),
                "system": b"You are a pirate.",
                "license": b"MIT",
            },
            "registry.ollama.ai/library/nomic/latest": {"model": weights(home, embeds=True)},
            "hf.co/org/name/Q4_K_M": {"model": gguf, "projector": b"GGUF", "adapter": b"GGUF"},
            "registry.ollama.ai/library/cloudy/120b-cloud": {"license": b"MIT"},
        },
    )
    (store / "manifests" / "registry.ollama.ai" / "library" / "broken").mkdir()
    (store / "manifests" / "registry.ollama.ai" / "library" / "broken" / "latest").write_text(
        json.dumps({"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../etc"}]})
    )

    models, whole, notes = imported(home, "ollama")

    blob = str(store / "blobs" / f"sha256-{hashlib.sha256(gguf).hexdigest()}")
    assert models["qwen3:8b"] == {
        "id": "qwen3:8b",
        "engine": "llamacpp",
        "source": blob,
        "sampling": {"temperature": 0.6},
        "context": 8192,
        "target_concurrency": 1,
    }
    assert (models["nomic:latest"]["task"], models["nomic:latest"]["context"]) == ("embed", 4096)
    assert models["hf.co/org/name:Q4_K_M"]["mmproj"].startswith(str(store))
    assert set(models) == {"qwen3:8b", "nomic:latest", "hf.co/org/name:Q4_K_M"}
    assert whole["aliases"] == {"nomic": "nomic:latest"}
    for note in (
        "qwen3:8b: stop is not carried over",
        "qwen3:8b: mirostat is not carried over",
        "qwen3:8b: its system prompt is not carried over",
        "hf.co/org/name:Q4_K_M: its adapter is not carried over",
        "cloudy:120b-cloud: left out: it has no weights",
        "broken:latest: left out: its manifest has a digest that is none",
    ):
        assert f"note: {note}" in notes
    assert "pirate" not in notes


def test_the_folder_of_models_is_read_without_its_home(home: Path) -> None:
    for name in ("org/small-GGUF/small-Q4_K_M.gguf", "org/audio/model.bin"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("{}")

    models, _, notes = imported(home, "lm-studio", "--folder", str(home))

    assert models["org/small-GGUF"]["source"] == str(home / "org/small-GGUF/small-Q4_K_M.gguf")
    assert "org/audio: left out: it has no GGUF file of a model and no config.json" in notes


def test_each_file_of_lm_studio_is_an_entry_with_what_its_user_set(home: Path) -> None:
    models_folder = home / ".lmstudio" / "models"
    for name in (
        "lmstudio-community/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf",
        "lmstudio-community/gemma-3-GGUF/gemma-3-Q4_K_M.gguf",
        "lmstudio-community/gemma-3-GGUF/gemma-3-Q8_0.gguf",
        "lmstudio-community/gemma-3-GGUF/mmproj-model-f16.gguf",
        "org/large-GGUF/large-Q4_K_M-00001-of-00002.gguf",
        "org/large-GGUF/large-Q4_K_M-00002-of-00002.gguf",
        "mlx-community/Qwen3-4B-4bit/config.json",
        "org/plain/config.json",
    ):
        (models_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (models_folder / name).write_text("{}")
    defaults = home / ".lmstudio/.internal/user-concrete-model-default-config/lmstudio-community/Qwen3-8B-GGUF"
    defaults.mkdir(parents=True)
    load = [{"key": "llm.load.contextLength", "value": 16384}, {"key": "llm.load.llama.flashAttention", "value": True}]
    operation = [
        {"key": "llm.prediction.temperature", "value": 0.3},
        {"key": "llm.prediction.topPSampling", "value": {"checked": True, "value": 0.9}},
        {"key": "llm.prediction.minPSampling", "value": {"checked": False, "value": 0.1}},
        {"key": "llm.prediction.systemPrompt", "value": "You are a pirate."},
    ]
    text = json.dumps({"preset": "", "operation": {"fields": operation}, "load": {"fields": load}})
    (defaults / "Qwen3-8B-Q4_K_M.gguf.json").write_text(text)

    models, whole, notes = imported(home, "lm-studio")

    qwen = models["lmstudio-community/Qwen3-8B-GGUF"]
    assert (qwen["context"], qwen["sampling"]) == (16384, {"temperature": 0.3, "top_p": 0.9})
    assert qwen["source"] == str(models_folder / "lmstudio-community/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf")
    assert set(models) == {
        "lmstudio-community/Qwen3-8B-GGUF",
        "lmstudio-community/gemma-3-GGUF:Q4_K_M",
        "lmstudio-community/gemma-3-GGUF:Q8_0",
        "org/large-GGUF",
        "org/plain",
    }
    assert models["lmstudio-community/gemma-3-GGUF:Q8_0"]["mmproj"].endswith("mmproj-model-f16.gguf")
    assert models["org/plain"]["engine"] == "vllm"
    assert whole["aliases"]["qwen3-8b"] == "lmstudio-community/Qwen3-8B-GGUF"
    assert "llm.load.llama.flashAttention, llm.prediction.systemPrompt are not carried over" in notes
    assert "mlx-community/Qwen3-4B-4bit: left out: no engine of cortex runs MLX" in notes
    assert "pirate" not in notes


def test_what_litellm_sends_to_own_machines_becomes_functions(home: Path) -> None:
    a_store(home / ".ollama" / "models", {"registry.ollama.ai/library/qwen3/8b": {"model": weights(home)}})
    (home / "config.yaml").write_text(LITELLM)

    models, whole, notes = imported(home, str(home / "config.yaml"))

    assert models["local"]["source"].startswith(str(home / ".ollama" / "models" / "blobs"))
    assert models["local"]["sampling"] == {"temperature": 0.2}
    assert models["big"] == {
        "id": "big",
        "engine": "vllm",
        "source": "Qwen/Qwen3-32B",
        "default_output_tokens": 2000,
        "request_timeout_s": 30,
        "cost": {"input": 0.1, "output": 0.4},
        "max": 2,
    }
    assert set(models) == {"local", "big"}
    assert whole["aliases"] == {"gpt-4": "big"}
    for note in (
        "gpt-4o: left out: openai is a provider or a server of its own",
        "*: left out: it stands for many models",
        "litellm_settings is not carried over",
        "router_settings.routing_strategy is not carried over",
        "local: rpm is not carried over: limits are those of a key",
        "big: another deployment with the model openai/gpt-4o is left out",
        "big: api_key is not carried over",
        "big: model_info.supports_vision is not carried over",
    ):
        assert f"note: {note}" in notes
    for secret in ("sk-secret-value", "sk-1234"):
        assert secret not in notes


def test_a_file_is_written_only_where_there_is_none(home: Path) -> None:
    (home / "config.yaml").write_text(LLAMA_SWAP)
    target = home / "new.toml"

    first = run(str(home / "config.yaml"), "--output", str(target))
    written = target.read_text()
    second = run(str(home / "config.yaml"), "--output", str(target))

    assert (first.exit_code, tomllib.loads(written)["defaults"]["start_timeout_s"]) == (0, 500)
    assert isinstance(second.exception, Failed)
    assert "exists, and is not changed" in str(second.exception)
    assert target.read_text() == written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("a: [", "config.yaml:1: is not YAML"),
        ("- a", "is no mapping"),
        ("a: 1", "neither a configuration of llama-swap nor of LiteLLM"),
    ],
)
def test_a_file_that_is_no_configuration_is_an_error_with_its_name(home: Path, text: str | None, message: str) -> None:
    path = home / "config.yaml"
    if text is not None:
        path.write_text(text)

    result = run(str(path))

    assert isinstance(result.exception, Failed)
    assert message in str(result.exception)
    assert "config.yaml" in str(result.exception)


@pytest.mark.parametrize("tool", ["ollama", "lm-studio"])
def test_a_tool_that_is_not_there_is_an_error_with_the_places_searched(home: Path, tool: str) -> None:
    result = run(tool)

    assert isinstance(result.exception, Failed)
    assert "no models of" in str(result.exception)
    assert "--folder" in str(result.exception)


@pytest.mark.parametrize(
    "text",
    [
        "models: {}",
        "models: {a: null, b: {cmd: 3}, c: {cmd: ''}, d: {cmd: 'x \"'}}",
        "models: {a: {cmd: '${x}', macros: {x: '${x}'}}}",
        "models: {\"a\\nb\": {cmd: llama-server -m x.gguf}, 1: {cmd: llama-server -m x.gguf, aliases: ['', 1]}}",
        "models: {a: {cmd: llama-server -m x.gguf -c -1 -np, env: {a: b}, ttl: x, filters: 3}}",
        "models: {a: {cmd: llama-server -m x.gguf, aliases: 5, env: 3, 1: x, zz: y}}",
        "models: {a: {cmd: llama-server -m x.gguf, aliases: foo, filters: {setParams: {top_k: .inf, min_p: .nan}}}}",
        "{models: {a: {cmd: llama-server -m x.gguf}}, hooks: {on_startup: {preload: 5}}}",
        "model_list: [null, 3, {model_name: a}, {model_name: a, litellm_params: {model: 3}}]",
        "model_list: [{model_name: a, litellm_params: {model: vllm/o/m, timeout: -1, max_tokens: -5}}]",
    ],
)
def test_odd_values_leave_entries_out_and_the_rest_passes_the_check(home: Path, text: str) -> None:
    (home / "config.yaml").write_text(text)

    result = run(str(home / "config.yaml"))

    assert result.exit_code == 0, result.exception
    (home / "models.toml").write_text(result.stdout)
    checked = CliRunner().invoke(check, [str(home / "models.toml")])
    assert checked.exit_code == 0, checked.exception
