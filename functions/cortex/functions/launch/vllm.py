"""vLLM: `vllm serve`, or its module where a build's script does not work.

vLLM fills a share of the device's total memory, by default nine tenths, although other instances may use the device. So
the share is always computed from the placement and passed explicitly.
"""

import re
from collections.abc import Collection

from msgspec import Struct

from cortex.functions.launch.context import Launch, LaunchContext, tool, visible
from cortex.functions.launch.modes import StartMode, Trick
from cortex.functions.spec import Function

MIB_PER_GIB = 1024
CPU_PROCESSES_MB = 1536
"""Memory of vLLM's processes on a CPU host, in addition to the weights and the cache."""


OUTSIDE_MB, OUTSIDE_EAGER_MB = 2176, 1664
"""What vLLM takes on a GPU outside its share at the first start: CUDA context, graphs, what the allocator holds. The
highest of 0.26 on an H200, with graphs and without; later starts go by the measurement."""
CACHE_BYTES_SINCE = (0, 11)
"""The first version with `--kv-cache-memory-bytes`."""
SIZING_ARGUMENTS = ("--kv-cache-memory", "--gpu-memory-utilization", "--num-gpu-blocks-override")

EAGER, NOT_EAGER = "--enforce-eager", "--no-enforce-eager"
GRAPH_ARGUMENTS = (
    EAGER, NOT_EAGER, "--compilation-config", "-cc", "-O", "--optimization-level",
    "--cudagraph-capture-sizes", "--max-cudagraph-capture-size", "--cuda-graph-sizes",
)  # fmt: skip
"""Arguments by which a function decides about compilation and graphs itself."""
FEW_SIZES = ("--compilation-config", '{"cudagraph_capture_sizes":[1,2,4,8]}')
"""Graphs for batches of up to eight requests; all versions since `FEW_SIZES_SINCE` take this form."""
FEW_SIZES_SINCE = (0, 9)
SIZES_HASHED_SINCE = (0, 12)
"""The first version whose compile cache depends on the sizes of the graphs: with few of them it compiles anew. The
source of 0.11.2 names what `CompilationConfig.compute_hash` hashes, without the sizes; that of 0.12.0 names what it
does not."""
MOVABLE_SINCE = (0, 32)
"""The first version whose compiled code was seen to load from another folder than the one it was compiled in; the
sources of earlier ones store the path."""
SPECULATIVE = ("--speculative-config", "-sc", "--spec")
"""Arguments with which sizes of graphs have to be multiples of a number of tokens."""


RANKS = (16, 32, 64, 128, 256, 320, 512)
"""Values of `--max-lora-rank`, without those below vLLM's default."""
RANK_ARGUMENT = "--max-lora-rank"
MOST_ADAPTERS = 4
"""How many adapters one batch may use. vLLM reserves the memory of each at its start; requests for more wait for each
other."""

NO_DOMAIN = "media.cortex.invalid"
"""The only domain from which vLLM may fetch media. `.invalid` never resolves (RFC 2606), so it fetches none: the router
passes media as data. An empty list would allow every domain."""

KEY_CHECK = "cortex_key_check.RequireKey"
"""The middleware that requires the worker's key for every path. It is in `LaunchContext.engine_modules`; an engine that
cannot import it does not start."""

KEY_FILE = "CORTEX_WORKER_KEY_FILE"
"""The variable that names the file with the key. vLLM hashes its own variables into the key of its compile cache, so a
`VLLM_API_KEY` of the instance would make every start compile again."""

OWN_KEY = "VLLM_API_KEY"
"""vLLM's own key. A worker has none: `KEY_CHECK` covers what it would cover."""

ALWAYS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    # Check for CUDA through NVML: a check through CUDA would initialise it in a process that may fork later.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


class Family(Struct, frozen=True):
    """The formats of tool calls and reasoning of all models whose names contain a word."""

    word: str
    tools: str = ""
    reasoning: str = ""


# The first match counts, so the most specific words come first.
FAMILIES = (
    Family("functiongemma", "functiongemma"),
    Family("gemma-4", "gemma4", "gemma4"),
    Family("qwen3-coder", "qwen3_coder"),
    Family("qwen3.5", "qwen3_coder", "qwen3"),
    Family("qwen3.6", "qwen3_coder", "qwen3"),
    Family("qwq", "hermes", "deepseek_r1"),
    Family("deepseek-r1-distill-qwen", "hermes", "deepseek_r1"),
    Family("deepseek-r1-distill-llama", "llama3_json", "deepseek_r1"),
    Family("deepseek-v3.2", "deepseek_v32", "deepseek_v3"),
    Family("deepseek-v3.1", "deepseek_v31", "deepseek_v3"),
    Family("deepseek-r1", "deepseek_v3", "deepseek_r1"),
    Family("deepseek-v3", "deepseek_v3"),
    Family("gpt-oss", "openai", "openai_gptoss"),
    Family("glm-4.7", "glm47", "glm45"),
    Family("glm-4.6", "glm45", "glm45"),
    Family("glm-4.5", "glm45", "glm45"),
    Family("kimi-k2-thinking", "kimi_k2", "kimi_k2"),
    Family("kimi-k2", "kimi_k2"),
    Family("minimax-m2", "minimax_m2", "minimax_m2"),
    Family("seed-oss", "seed_oss", "seed_oss"),
    Family("ernie-4.5", "ernie45", "ernie45"),
    Family("hunyuan-a13b", "hunyuan_a13b", "hunyuan_a13b"),
    Family("step3", "step3", "step3"),
    Family("olmo-3", "olmo3", "olmo3"),
    Family("xlam", "xlam"),
    Family("magistral", "mistral", "mistral"),
    Family("mistral", "mistral"),
    Family("mixtral", "mistral"),
    Family("ministral", "mistral"),
    Family("devstral", "mistral"),
    Family("granite-4", "granite4"),
    Family("granite-3", "granite", "granite"),
    Family("llama-4", "llama4_pythonic"),
    Family("hermes", "hermes"),
    Family("phi-4-mini", "phi4_mini_json"),
    Family("llama-3", "llama3_json"),
    Family("qwen3", "hermes", "qwen3"),
    Family("qwen2.5", "hermes"),
)
_WITHOUT_REASONING = ("instruct", "embedding", "reranker", "coder")


def launch(function: Function, context: LaunchContext) -> Launch:
    """Return the command. It sets all parameters that affect memory explicitly."""
    run = tool("vllm", context)
    model = (context.weights,) if run[-1] == "serve" else ("--model", context.weights)
    on_cpu = context.device_kind == "cpu"
    tricks = choose_tricks(function, context)
    return Launch(
        argv=(
            *run, *model,
            "--served-model-name", function.id,
            "--host", context.host,
            "--port", str(context.port),
            "--gpu-memory-utilization", share(function, context, tricks),
            *(("--kv-cache-memory-bytes", str(context.cache_mb << 20)) if Trick.KNOWN_CACHE in tricks else ()),
            *(("--tensor-parallel-size", str(function.min_devices)) if function.min_devices > 1 else ()),
            *(("--max-model-len", str(function.context)) if function.context else ()),
            *(("--dtype", function.dtype) if function.dtype else ()),
            *(("--quantization", function.quant.lower()) if function.quant else ()),
            *((EAGER,) if on_cpu or Trick.EAGER in tricks else ()),
            *(FEW_SIZES if Trick.FEW_GRAPHS in tricks else ()),
            *_parsers(function),
            *(("--runner", "pooling") if function.task in ("embed", "rerank") else ()),
            *(("--chat-template", function.chat_template) if function.chat_template else ()),
            *(("--enable-sleep-mode",) if context.sleeps else ()),
            *_adapters(function, context),
            "--allowed-media-domains", NO_DOMAIN,
            "--middleware", KEY_CHECK,
            *function.args,
        ),
        env={
            **base_env(context),
            **({"VLLM_CPU_KVCACHE_SPACE": cpu_cache_gib(context)} if on_cpu else {}),
            **{name: value for name, value in function.env.items() if name != OWN_KEY},
            **visible(context),
            "PYTHONPATH": ":".join(filter(None, (context.engine_modules, function.env.get("PYTHONPATH")))),
            KEY_FILE: context.key_file,
            # Its routes for developers, of which sleep is one, can do anything to an engine: see `KEY_CHECK`.
            "VLLM_SERVER_DEV_MODE": "1" if context.sleeps else "0",
            **({"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"} if context.adapter_rank else {}),
        },
        server="vllm",
        files={context.key_file: "\n".join(filter(None, (context.key, context.control_key)))},
        tricks=tricks,
        compiles="" if is_eager(function, tricks, on_cpu=on_cpu) else _compiles(context.version, tricks),
    )  # fmt: skip


def highest_rank(function: Function, rank: int) -> int:
    """Return the highest rank of an adapter that an instance can load: that of the function's arguments, else the least
    value of the engine's that covers `rank`."""
    for word, following in zip(function.args, (*function.args, "")[1:], strict=True):
        name, _, value = word.replace("_", "-").partition("=")
        if name == RANK_ARGUMENT and (value or following).isdecimal():
            return int(value or following)
    return next((r for r in RANKS if r >= rank), RANKS[-1])


def _adapters(function: Function, context: LaunchContext) -> tuple[str, ...]:
    """Return the flags for adapters. The function's own arguments decide about numbers that they have."""
    if not context.adapter_rank:
        return ()
    count = min(MOST_ADAPTERS, max(1, len(function.adapters)))
    rank = (RANK_ARGUMENT, str(highest_rank(function, context.adapter_rank)))
    return (
        "--enable-lora",
        *(() if _has(function, ("--max-loras",)) else ("--max-loras", str(count))),
        *(() if _has(function, (RANK_ARGUMENT,)) else rank),
    )


def fast_tricks(function: Function, version: str) -> tuple[Trick, ...]:
    """Return the tricks of a fast start that this version has; none where the function's own arguments decide about
    compilation and graphs."""
    if _has(function, GRAPH_ARGUMENTS):
        return ()
    few = release(version) >= FEW_SIZES_SINCE and not _has(function, SPECULATIVE)
    return (Trick.EAGER, *((Trick.FEW_GRAPHS,) if few else ()))


def choose_tricks(function: Function, context: LaunchContext) -> tuple[Trick, ...]:
    """Return the tricks of a start:

    (1) the cache's size, where it is known, this version has the argument, and the function does not size the memory;
    (2) in a fast start, few graphs if there is compiled code for them;
    (3) else the first trick of a fast start that has not failed.
    """
    if context.device_kind == "cpu":
        return ()
    own = _has(function, SIZING_ARGUMENTS)
    sizable = context.cache_mb and not own and release(context.version) >= CACHE_BYTES_SINCE
    known = (Trick.KNOWN_CACHE,) if sizable and Trick.KNOWN_CACHE not in context.tricks_off else ()  # (1)
    fast = fast_tricks(function, context.version) if context.mode is StartMode.FAST else ()
    fast = tuple(t for t in fast if t not in context.tricks_off)
    few = Trick.FEW_GRAPHS
    if few in fast and _compiles(context.version, (few,)) in context.compiled:  # (2)
        return (few, *known)
    return (*fast[:1], *known)  # (3)


def is_eager(function: Function, tricks: Collection[str], *, on_cpu: bool = False) -> bool:
    """Whether an engine neither compiles nor makes graphs: on a CPU, unless the function's arguments say otherwise."""
    return EAGER in function.args or Trick.EAGER in tricks or (on_cpu and NOT_EAGER not in function.args)


def is_movable(version: str) -> bool:
    """Whether code that this version compiled loads from any folder."""
    return release(version) >= MOVABLE_SINCE


def _compiles(version: str, tricks: tuple[Trick, ...]) -> str:
    """Return for which settings a start compiles, as far as the key of this version's cache tells them apart."""
    hashed = release(version) >= SIZES_HASHED_SINCE
    return str(Trick.FEW_GRAPHS if hashed and Trick.FEW_GRAPHS in tricks else StartMode.FULL)


def _has(function: Function, options: tuple[str, ...]) -> bool:
    """Whether a function's arguments have an option, in any accepted spelling."""
    words = (w.replace("_", "-") if w.startswith("--") else w for w in function.args)
    return any(word.startswith(options) for word in words)


def release(version: str) -> tuple[int, int]:
    """Return the major and minor number of a version; (0, 0) when it has none.

    >>> release("0.32.0 (vllm-cpu)")
    (0, 32)
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def base_env(context: LaunchContext) -> dict[str, str]:
    """Return the environment of every vLLM of this build on this kind of device.

    It reuses compiled files between starts, reports no usage statistics, and does not search the network for local
    files.
    """
    caches = (
        {
            "VLLM_CACHE_ROOT": f"{context.cache}/vllm",
            "TRITON_CACHE_DIR": f"{context.cache}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{context.cache}/inductor",
        }
        if context.cache
        else {}
    )
    offline = {"HF_HUB_OFFLINE": "1"} if context.weights.startswith("/") else {}
    return {**caches, **offline, **ALWAYS}


def share(function: Function, context: LaunchContext, tricks: Collection[str] = ()) -> str:
    """Return the memory that vLLM manages as a share of the device, rounded down so that the shares never exceed 1."""
    if not context.device_total_mb or not context.memory_mb:
        return "0.5"
    of_10000 = min(9900, managed_mb(function, context, tricks) * 10_000 // context.device_total_mb)
    return f"{max(1, of_10000) / 10_000:.4f}"


def managed_mb(function: Function, context: LaunchContext, tricks: Collection[str] = ()) -> int:
    """Return the part of the placed memory that vLLM manages: without what it takes outside its share, but not less
    than it needs for one request, nor than half."""
    if context.device_kind == "cpu":
        return context.memory_mb
    outside_mb = OUTSIDE_EAGER_MB if is_eager(function, tricks) else OUTSIDE_MB
    least_mb = max(context.least_mb - outside_mb, context.memory_mb // 2)
    return max(context.memory_mb - outside_mb, min(context.memory_mb, least_mb))


def cpu_cache_gib(context: LaunchContext) -> str:
    """Return the placed memory that remains for the cache, in whole GiB, at least vLLM's minimum of one."""
    cache_mb = context.memory_mb - context.weights_mb - CPU_PROCESSES_MB
    return str(max(1, cache_mb // MIB_PER_GIB))


def find_family(function: Function) -> Family | None:
    """Return the family of a model by its id, or else by its source."""
    for name in (function.id.lower(), function.weights.lower()):
        for family in FAMILIES:
            if family.word in name.replace("_", "-"):
                return family
    return None


def _parsers(function: Function) -> tuple[str, ...]:
    """Return the flags for tool calls and reasoning: those of the spec, or else those of the model's family."""
    family = find_family(function) if function.task in ("auto", "generate") else None
    tools = family.tools if family and function.tool_parser == "auto" else function.tool_parser
    reasoning = function.reasoning_parser
    if reasoning == "auto":
        plain = any(word in function.weights.lower() or word in function.id.lower() for word in _WITHOUT_REASONING)
        reasoning = family.reasoning if family and not plain else ""
    return (
        *(("--enable-auto-tool-choice", "--tool-call-parser", tools) if tools not in ("", "auto", "none") else ()),
        *(("--reasoning-parser", reasoning) if reasoning not in ("", "auto", "none") else ()),
    )
