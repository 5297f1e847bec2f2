"""llama.cpp, by one of its three servers.

The binary `llama-server`, and `xllamacpp`, wheels with the same C++ server and flags, have all features.
`llama_cpp.server` (llama-cpp-python) is a separate server in Python: it parses no tool calls and serves one request at
a time, as its row in `servers.py` has it.
"""

from cortex.functions.launch.context import CannotLaunch, Launch, LaunchContext, tool, visible
from cortex.functions.spec import Function

ORDER = ("llama-server", "xllamacpp", "llama_cpp.server")
"""Order of preference, unless the spec names a server."""

PROMPT_CACHE_MB = 256
"""llama.cpp caches prompts in RAM, up to 8 GiB by default: too much with several functions on one host. It searches the
cache for each request, whatever the slot and the adapter, so it is off where keys do not share prompts, and with
adapters."""

ALL_LAYERS = 999
"""More than any model has: older servers do not accept `all`."""

BUFFERS = 1.15
"""Memory of a layer on a GPU relative to its weights, including its part of the context and of the buffers."""


def launch(function: Function, context: LaunchContext) -> Launch:
    """Return the command of the server that the spec names, otherwise of the first one on this host."""
    names = (function.server,) if function.server else ORDER
    server = next((name for name in names if name in context.tools), None)
    if server is None:
        raise CannotLaunch(f"no '{' or '.join(names)}' on this host" if function.server else _none())
    if server == "llama_cpp.server":
        return _python(function, context)
    return _native(server, function, context)


def _none() -> str:
    return f"no server of llama.cpp on this host ({', '.join(ORDER)})"


def gpu_layers(context: LaunchContext) -> int | None:
    """Return the number of layers for the GPU, as many as the placed memory holds; None: all.

    A model with an unknown number of layers is put onto the GPU as a whole, since a partial one would be slow without
    any notice to the operator.
    """
    room = context.memory_mb * max(1, len(context.devices))
    if not context.layers or not context.weights_mb or context.weights_mb <= room:
        return None
    return min(context.layers, int(context.layers * room / (context.weights_mb * BUFFERS)))


def _native(server: str, function: Function, context: LaunchContext) -> Launch:
    # llama.cpp divides --ctx-size among its slots; `context` is the limit of one request.
    ctx_size = ("--ctx-size", str(function.context * function.target_concurrency)) if function.context else ()
    layers: tuple[str, ...] = ()
    if context.device_kind == "gpu":
        count = gpu_layers(context)
        layers = ("--n-gpu-layers", str(ALL_LAYERS if count is None else count))
    return Launch(
        argv=(
            *tool(server, context),
            "--model", context.weights,
            "--alias", function.id,
            "--host", context.host,
            "--port", str(context.port),
            "--parallel", str(function.target_concurrency),
            "--cache-ram", str(PROMPT_CACHE_MB if function.cache == "shared" and not context.adapters else 0),
            "--metrics",
            "--slots",
            *(("--slot-save-path", context.saved_slots) if context.saved_slots else ()),
            *ctx_size,
            *layers,
            *_task(function),
            *(word for path in context.adapters for word in ("--lora", path)),
            *(("--lora-init-without-apply",) if context.adapters else ()),
            *(("--mmproj", function.mmproj) if function.mmproj else ()),
            *(("--chat-template-file", function.chat_template) if function.chat_template else ()),
            *function.args,
        ),
        env={**function.env, **visible(context), "LLAMA_API_KEY": context.key},
        server=server,
    )  # fmt: skip


def _task(function: Function) -> tuple[str, ...]:
    if function.task not in ("embed", "rerank"):
        return ()
    # A text to embed is processed as a whole, so it has to fit into one batch.
    batch = ("--batch-size", str(function.context), "--ubatch-size", str(function.context)) if function.context else ()
    return ("--embeddings" if function.task == "embed" else "--rerank", *batch)


def _python(function: Function, context: LaunchContext) -> Launch:
    layers: tuple[str, ...] = ()
    if context.device_kind == "gpu":
        count = gpu_layers(context)
        layers = ("--n_gpu_layers", "-1" if count is None else str(count))
    return Launch(
        argv=(
            *tool("llama_cpp.server", context),
            "--model", context.weights,
            "--model_alias", function.id,
            "--host", context.host,
            "--port", str(context.port),
            # By default, a new request interrupts the running one.
            "--interrupt_requests", "False",
            *(("--n_ctx", str(function.context)) if function.context else ()),
            *layers,
            *(("--embedding", "True") if function.task == "embed" else ()),
            *(("--clip_model_path", function.mmproj) if function.mmproj else ()),
            *function.args,
        ),
        # For host and port, its environment overrides its arguments.
        env={
            **function.env,
            **visible(context),
            "API_KEY": context.key,
            "HOST": context.host,
            "PORT": str(context.port),
        },
        health_path="/v1/models",
        server="llama_cpp.server",
    )  # fmt: skip
