"""llama.cpp, by whichever of its three servers this host has.

`llama-server`, the binary, and `xllamacpp`, wheels with the same C++ server behind the same flags, do all that
llama.cpp can. `llama_cpp.server` (llama-cpp-python) is a server of its own in Python: it parses no tool calls and
works on one request at a time, and says so in `servers.py`.
"""

from cortex.functions.launch.context import CannotLaunch, Launch, LaunchContext, tool, visible
from cortex.functions.spec import Function

ORDER = ("llama-server", "xllamacpp", "llama_cpp.server")
"""The first of these that is there, unless the spec names one."""

PROMPT_CACHE_MB = 256
"""llama.cpp keeps prompts in RAM, 8 GiB by its own default: too much beside other functions on one host. It looks into
it for every request, whichever slot that is for: so there is none where keys do not share their prompts."""

ALL_LAYERS = 999
"""More than any model has: older servers do not know the word `all`."""

BUFFERS = 1.15
"""A layer on a GPU takes its weights and this much more, for its part of the context and of the buffers."""


def launch(function: Function, slot: LaunchContext) -> Launch:
    """Return the command of the server that the spec names, else of the first this host has."""
    wanted = (function.server,) if function.server else ORDER
    server = next((name for name in wanted if name in slot.tools), None)
    if server is None:
        raise CannotLaunch(f"no '{' or '.join(wanted)}' on this host" if function.server else _none())
    if server == "llama_cpp.server":
        return _python(function, slot)
    return _native(server, function, slot)


def _none() -> str:
    return f"no server of llama.cpp on this host ({', '.join(ORDER)})"


def gpu_layers(slot: LaunchContext) -> int | None:
    """How many layers go onto the GPU: all that the placed memory holds; None: as many as the model has.

    Without a GPU it is not said: a build for CPUs has no choice. A model whose layers nobody counted goes onto the
    GPU whole, because half of one is slower than the operator expects and says so nowhere.
    """
    room = slot.memory_mb * max(1, len(slot.devices))
    if not slot.layers or not slot.weights_mb or slot.weights_mb <= room:
        return None
    return min(slot.layers, int(slot.layers * room / (slot.weights_mb * BUFFERS)))


def _native(server: str, function: Function, slot: LaunchContext) -> Launch:
    # llama.cpp divides --ctx-size among its slots; `context` is what one request may use.
    context = ("--ctx-size", str(function.context * function.target_concurrency)) if function.context else ()
    layers: tuple[str, ...] = ()
    if slot.device_kind == "gpu":
        fitting = gpu_layers(slot)
        layers = ("--n-gpu-layers", str(ALL_LAYERS if fitting is None else fitting))
    return Launch(
        argv=(
            *tool(server, slot),
            "--model", slot.weights,
            "--alias", function.id,
            "--host", slot.host,
            "--port", str(slot.port),
            "--parallel", str(function.target_concurrency),
            "--cache-ram", str(PROMPT_CACHE_MB if function.cache == "shared" else 0),
            "--metrics",
            *context,
            *layers,
            *_task(function),
            *(("--mmproj", function.mmproj) if function.mmproj else ()),
            *(("--chat-template-file", function.chat_template) if function.chat_template else ()),
            *function.args,
        ),
        env={**function.env, **visible(slot), "LLAMA_API_KEY": slot.key},
        server=server,
    )  # fmt: skip


def _task(function: Function) -> tuple[str, ...]:
    if function.task not in ("embed", "rerank"):
        return ()
    # A text to embed is computed in one piece: it has to fit into one batch.
    batch = ("--batch-size", str(function.context), "--ubatch-size", str(function.context)) if function.context else ()
    return ("--embeddings" if function.task == "embed" else "--rerank", *batch)


def _python(function: Function, slot: LaunchContext) -> Launch:
    layers: tuple[str, ...] = ()
    if slot.device_kind == "gpu":
        fitting = gpu_layers(slot)
        layers = ("--n_gpu_layers", "-1" if fitting is None else str(fitting))
    return Launch(
        argv=(
            *tool("llama_cpp.server", slot),
            "--model", slot.weights,
            "--model_alias", function.id,
            "--host", slot.host,
            "--port", str(slot.port),
            # By its own default a new request breaks off the one it works on.
            "--interrupt_requests", "False",
            *(("--n_ctx", str(function.context)) if function.context else ()),
            *layers,
            *(("--embedding", "True") if function.task == "embed" else ()),
            *(("--clip_model_path", function.mmproj) if function.mmproj else ()),
            *function.args,
        ),
        # Of these two it believes its environment more than its arguments.
        env={**function.env, **visible(slot), "API_KEY": slot.key, "HOST": slot.host, "PORT": str(slot.port)},
        health_path="/v1/models",
        server="llama_cpp.server",
    )  # fmt: skip
