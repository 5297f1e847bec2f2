"""vLLM: `vllm serve`, or its module where a build's script does not work.

vLLM takes a share of the device's whole memory and fills it. So the share is always said, and computed from the
placement: its own default is nine tenths of a device that others use, too.
"""

from msgspec import Struct

from cortex.functions.launch.context import Launch, LaunchContext, tool, visible
from cortex.functions.spec import Function

MIB_PER_GIB = 1024
CPU_PROCESSES_MB = 1536
"""What vLLM's processes take on a CPU host beside the weights and the cache."""


NO_DOMAIN = "media.cortex.invalid"
"""The one domain that vLLM may fetch media from. `.invalid` never resolves (RFC 2606), so it fetches none: the router
passes media as data. An empty list would allow every domain."""

KEY_CHECK = "cortex_key_check.RequireKey"
"""The class that requires the worker's key for every path, where vLLM does so for some. It is in the folder
`Slot.engine_modules`; an engine that cannot import it does not start."""

ALWAYS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    # Whether there is CUDA is asked of NVML: asking CUDA itself would initialise it, in a process that may yet fork.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


class Family(Struct, frozen=True):
    """Models whose names have a word in common speak of tools and thoughts in one way."""

    word: str
    tools: str = ""
    reasoning: str = ""


# The first that matches: a name is looked at from the most particular word to the least.
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
_DOES_NOT_THINK = ("instruct", "embedding", "reranker", "coder")


def launch(function: Function, slot: LaunchContext) -> Launch:
    """Return the command. Everything that shapes memory is explicit."""
    run = tool("vllm", slot)
    model = (slot.weights,) if run[-1] == "serve" else ("--model", slot.weights)
    on_cpu = slot.device_kind == "cpu"
    return Launch(
        argv=(
            *run, *model,
            "--served-model-name", function.id,
            "--host", slot.host,
            "--port", str(slot.port),
            "--gpu-memory-utilization", share(slot),
            *(("--tensor-parallel-size", str(function.min_devices)) if function.min_devices > 1 else ()),
            *(("--max-model-len", str(function.context)) if function.context else ()),
            *(("--dtype", function.dtype) if function.dtype else ()),
            *(("--quantization", function.quant.lower()) if function.quant else ()),
            *(("--enforce-eager",) if on_cpu else ()),
            *_parsers(function),
            *(("--runner", "pooling") if function.task in ("embed", "rerank") else ()),
            *(("--chat-template", function.chat_template) if function.chat_template else ()),
            *(("--enable-sleep-mode",) if function.sleep else ()),
            "--allowed-media-domains", NO_DOMAIN,
            "--middleware", KEY_CHECK,
            *function.args,
        ),
        env={
            **base_env(slot),
            **({"VLLM_CPU_KVCACHE_SPACE": cpu_cache_gib(slot)} if on_cpu else {}),
            **function.env,
            **visible(slot),
            "PYTHONPATH": ":".join(filter(None, (slot.engine_modules, function.env.get("PYTHONPATH")))),
            "VLLM_API_KEY": slot.key,
            # Its endpoints for developers can do anything to an engine; sleep is one of them.
            "VLLM_SERVER_DEV_MODE": "1" if function.sleep else "0",
        },
        server="vllm",
    )  # fmt: skip


def base_env(slot: LaunchContext) -> dict[str, str]:
    """Return the variables that every vLLM of this build on this kind of device gets.

    What it compiled is kept from one start to the next. It tells nobody of its use, and does not look for files on
    the network that are here.
    """
    caches = (
        {
            "VLLM_CACHE_ROOT": f"{slot.cache}/vllm",
            "TRITON_CACHE_DIR": f"{slot.cache}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{slot.cache}/inductor",
        }
        if slot.cache
        else {}
    )
    offline = {"HF_HUB_OFFLINE": "1"} if slot.weights.startswith("/") else {}
    return {**caches, **offline, **ALWAYS}


def share(slot: LaunchContext) -> str:
    """Return the placed memory as a share of the device, rounded down: two neighbours must not add up to more."""
    if not slot.device_total_mb or not slot.memory_mb:
        return "0.5"
    of_10000 = min(9900, slot.memory_mb * 10_000 // slot.device_total_mb)
    return f"{max(1, of_10000) / 10_000:.4f}"


def cpu_cache_gib(slot: LaunchContext) -> str:
    """Return what is left of the placed memory for the cache, in whole GiB, at least one: it takes nothing less."""
    left = slot.memory_mb - slot.weights_mb - CPU_PROCESSES_MB
    return str(max(1, left // MIB_PER_GIB))


def family(function: Function) -> Family | None:
    """Return the family a model's name tells of: the source's, where a name of one's own does not."""
    for name in (function.id.lower(), function.weights.lower()):
        for known in FAMILIES:
            if known.word in name.replace("_", "-"):
                return known
    return None


def _parsers(function: Function) -> tuple[str, ...]:
    """Return the flags for tools and thoughts: what the spec names, else what the model's family speaks."""
    known = family(function) if function.task in ("auto", "generate") else None
    tools = known.tools if known and function.tool_parser == "auto" else function.tool_parser
    reasoning = function.reasoning_parser
    if reasoning == "auto":
        silent = any(word in function.weights.lower() or word in function.id.lower() for word in _DOES_NOT_THINK)
        reasoning = known.reasoning if known and not silent else ""
    return (
        *(("--enable-auto-tool-choice", "--tool-call-parser", tools) if tools not in ("", "auto", "none") else ()),
        *(("--reasoning-parser", reasoning) if reasoning not in ("", "auto", "none") else ()),
    )
