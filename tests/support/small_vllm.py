"""A server started like `vllm serve`, whose own key check covers `/v1` only, like vLLM's.

Run by the test's own Python: `small_vllm.py serve MODEL --served-model-name NAME --host HOST --port PORT …`. With
`--enable-lora` it loads adapters while it runs, and answers for one with the name of its folder.
"""

import argparse
import importlib
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import uvicorn

Answer = tuple[int, dict[str, Any]]


def write_environment(folder: Path) -> Path:
    """Write a virtual environment in which vLLM seems to be installed, and return its path."""
    (folder / "bin").mkdir(parents=True)
    has = json.dumps({"versions": {"vllm": "0.32.0"}, "modules": ["vllm"]})
    for name, line in {"python": f"echo '{has}'", "vllm": f'exec {sys.executable} {__file__} "$@"'}.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / "bin" / name).chmod(0o755)
    return folder


def write_weights(folder: Path) -> Path:
    """Write what looks like a model, and return its path."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(_no_tensors())
    return folder


def write_adapter(folder: Path, *, rank: int = 8, base: str = "", broken: bool = False) -> Path:
    """Write what looks like a LoRA adapter, and return its path; a broken one is what this engine cannot load."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": rank, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / ("other.safetensors" if broken else "adapter_model.safetensors")).write_bytes(_no_tensors())
    return folder


def _no_tensors() -> bytes:
    return struct.pack("<Q", 2) + b"{}"


class SmallVllm:
    """The application, before what `--middleware` names."""

    def __init__(self, model: str, *, loads_adapters: bool = False) -> None:
        self._model = model
        self._loads_adapters = loads_adapters and os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "1"
        self._adapters: dict[str, str] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer every path with 200, except for models and adapters that it does not have."""
        content = b""
        while (message := await receive()).get("more_body"):
            content += message.get("body", b"")
        content += message.get("body", b"")
        status, answer = self._answer(scope["path"], json.loads(content) if content.startswith(b"{") else {})
        body = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _answer(self, path: str, body: dict[str, Any]) -> Answer:
        if path == "/v1/models":
            names = (self._model, *self._adapters)
            return 200, {
                "object": "list",
                "data": [{"id": name, "object": "model", "max_model_len": 256} for name in names],
            }
        if path == "/v1/load_lora_adapter" and self._loads_adapters:
            return self._load(body["lora_name"], body["lora_path"])
        if path == "/v1/unload_lora_adapter" and self._loads_adapters:
            return (200, {}) if self._adapters.pop(body["lora_name"], None) else _error(404, "cannot be found")
        model = body.get("model", self._model)
        if model != self._model and model not in self._adapters:
            return _error(404, f"The model `{model}` does not exist.")
        text = Path(self._adapters[model]).name if model in self._adapters else "hello"
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return 200, {"id": "c", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}

    def _load(self, name: str, path: str) -> Answer:
        if name in self._adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        if not (Path(path) / "adapter_model.safetensors").is_file():
            return _error(500, "Loading lora failed")
        self._adapters[name] = path
        return 200, {}


def _error(status: int, message: str) -> Answer:
    return status, {"error": {"message": message, "type": "NotFoundError", "code": status}}


def main() -> None:
    """Serve, behind the middleware that the arguments name."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--served-model-name")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--middleware", action="append", default=[])
    options, _ = parser.parse_known_args()
    app: Any = SmallVllm(options.served_model_name, loads_adapters=options.enable_lora)
    for middleware in options.middleware:
        module, _, name = middleware.rpartition(".")
        app = getattr(importlib.import_module(module), name)(app)
    uvicorn.run(app, host=options.host, port=options.port, lifespan="off")


if __name__ == "__main__":
    main()
