"""A server that is started as `vllm serve` is, and opens its paths as a vLLM without a key of its own does.

Run by the test's own Python: `small_vllm.py serve MODEL --served-model-name NAME --host HOST --port PORT …`.
"""

import argparse
import importlib
import json
from typing import Any

import uvicorn


class SmallVllm:
    """The application, before what `--middleware` names."""

    def __init__(self, model: str) -> None:
        self._model = model

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer every path with 200."""
        body = json.dumps(self._answer(scope["path"])).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _answer(self, path: str) -> dict[str, Any]:
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": self._model, "object": "model", "max_model_len": 256}]}
        message = {"role": "assistant", "content": "hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return {"id": "c", "object": "chat.completion", "model": self._model, "choices": [choice], "usage": usage}


def main() -> None:
    """Serve, behind the middleware that the arguments name."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--served-model-name")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--middleware", action="append", default=[])
    options, _ = parser.parse_known_args()
    app: Any = SmallVllm(options.served_model_name)
    for middleware in options.middleware:
        module, _, name = middleware.rpartition(".")
        app = getattr(importlib.import_module(module), name)(app)
    uvicorn.run(app, host=options.host, port=options.port, lifespan="off")


if __name__ == "__main__":
    main()
