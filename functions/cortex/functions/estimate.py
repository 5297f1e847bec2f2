"""Estimates an instance's memory from its model's configuration and the size of its files. Pure.

Placement uses the estimate, and `cortex fn estimate` shows it:

    weights + cache + overhead
    cache    = tokens × bytes per token (if the configuration lacks the numbers: a fifth of the weights)
    tokens   = context × concurrent requests (without `context`: the model's own maximum, once)
    per token = 2 bytes × Σ over attention layers of key-value heads × (key width + value width)

The cache's formula is from Pope et al., "Efficiently Scaling Transformer Inference" (arXiv:2211.05102, §2.1), with the
key-value heads of grouped-query attention (Ainslie et al., arXiv:2305.13245). Multi-head latent attention stores one
compressed vector per layer, of the widths of the latent and of the rotary part (DeepSeek-V2, arXiv:2405.04434,
§2.1.2). Layers without attention have no cache; a sliding window counts as the whole context. So the cache is the
maximum for all requests together. The overhead is a rule of thumb for an engine's buffers and GPU context. From the
second start on, the measured memory replaces the estimate.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from cortex.functions.servers import max_concurrency, server_of
from cortex.functions.spec import Engine, Function

MIB = 1024 * 1024
CACHE_BYTES = 2
"""Keys and values have 16 bits by default."""
CACHE_OF_WEIGHTS = 0.2
"""Assumed size of the cache relative to the weights, if the configuration lacks the numbers."""
OVERHEAD_MB = {Engine.VLLM: 3072, Engine.LLAMACPP: 512, Engine.COMMAND: 1024, Engine.FAKE: 512}
"""Activations, compute buffers, CUDA context and graphs, on each device."""


class Shape(Struct, frozen=True, kw_only=True):
    """The numbers of a model's configuration that determine the size of its cache."""

    numbers_per_token: int
    """Keys and values, over all layers."""
    longest: int = 0
    """The model's maximum context in tokens."""
    formula: str = ""
    """The calculation of `numbers_per_token`."""


class Estimate(Struct, frozen=True, kw_only=True):
    """The memory of one instance in MiB, with the calculation."""

    function: str
    weights_mb: int
    cache_mb: int
    overhead_mb: int
    tokens: int
    devices: int
    total_mb: int
    per_device_mb: int
    least_mb: int
    """On each device, with the cache of a single request."""
    formula: str
    declared_mb: int = 0
    """The function's `vram_mb`, which overrides the estimate."""
    here: bool = False
    """The weights are on the host that made the estimate."""

    def within(self, most_mb: int) -> int:
        """Return the memory to request on each device if the largest device has `most_mb`.

        Only the cache may be reduced: vLLM fills the memory it gets, and a sliding window takes less than the estimate.
        """
        least = -(-(self.weights_mb + self.overhead_mb) // self.devices)
        return min(self.per_device_mb, max(most_mb, least))


def estimate(function: Function, weights_mb: int, shape: Shape | None, *, here: bool = False) -> Estimate:
    """Estimate the memory of an instance."""
    overhead = OVERHEAD_MB[function.engine] * function.min_devices
    at_a_time = max_concurrency(function, server_of(function)) or function.target_concurrency
    tokens = function.context * at_a_time or (shape.longest if shape else 0)
    if shape is None:
        cache = round(weights_mb * CACHE_OF_WEIGHTS)
        formula = "the configuration lacks the numbers for the cache: a fifth of the weights is assumed"
    else:
        cache = -(-tokens * shape.numbers_per_token * CACHE_BYTES // MIB)
        per = f"{shape.numbers_per_token * CACHE_BYTES} bytes a token ({shape.formula}, {CACHE_BYTES} bytes each)"
        times = f"{function.context} × {at_a_time} at a time" if function.context else "its maximum"
        formula = f"cache: {tokens} tokens ({times}) × {per}"
    total, devices = weights_mb + cache + overhead, function.min_devices
    single = -(-cache // at_a_time) if function.context else cache
    return Estimate(
        function=function.id,
        weights_mb=weights_mb,
        cache_mb=cache,
        overhead_mb=overhead,
        tokens=tokens,
        devices=devices,
        total_mb=total,
        per_device_mb=-(-total // devices),
        least_mb=-(-(weights_mb + single + overhead) // devices),
        formula=f"weights {weights_mb} + cache {cache} + overhead {overhead} MiB; {formula}",
        declared_mb=function.vram_mb,
        here=here,
    )


def shape_of_config(config: Mapping[str, Any]) -> Shape | None:
    """Read a `config.json` of HuggingFace; None when it lacks the numbers."""
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        config = {**config, **inner}
    kinds = config.get("layer_types")
    layers = _whole(config, "num_hidden_layers", "n_layer", "n_layers")
    if isinstance(kinds, list):
        layers = sum(1 for kind in kinds if "attention" in str(kind) and "linear" not in str(kind))
    elif every := _whole(config, "full_attention_interval"):
        layers //= every
    heads = _whole(config, "num_attention_heads", "n_head", "n_heads")
    hidden = _whole(config, "hidden_size", "n_embd", "d_model")
    width = _whole(config, "head_dim") or (hidden // heads if heads else 0)
    longest = _whole(config, "max_position_embeddings", "n_positions", "max_sequence_length")
    if latent := _whole(config, "kv_lora_rank"):
        return _latent(layers, latent, _whole(config, "qk_rope_head_dim"), longest)
    return _plain(layers, _whole(config, "num_key_value_heads", "n_head_kv") or heads, width, width, longest)


def shape_of_gguf(head: Mapping[str, Any]) -> Shape | None:
    """Read the metadata of a GGUF; None when they lack the numbers."""
    family = head.get("general.architecture", "")

    def number(name: str) -> int:
        return _whole(head, f"{family}.{name}")

    layers, heads = number("block_count"), number("attention.head_count")
    if every := number("full_attention_interval"):
        layers //= every
    width = number("attention.key_length") or (number("embedding_length") // heads if heads else 0)
    longest = number("context_length")
    if latent := number("attention.kv_lora_rank"):
        return _latent(layers, latent, number("rope.dimension_count"), longest)
    values = number("attention.value_length") or width
    return _plain(layers, number("attention.head_count_kv") or heads, width, values, longest)


def _plain(layers: int, heads: int, keys: int, values: int, longest: int) -> Shape | None:
    if not (layers and heads and keys):
        return None
    formula = f"{layers} layers × {heads} heads × ({keys} + {values})"
    return Shape(numbers_per_token=layers * heads * (keys + values), longest=longest, formula=formula)


def _latent(layers: int, latent: int, rotary: int, longest: int) -> Shape | None:
    formula = f"{layers} layers × ({latent} latent + {rotary} rotary)"
    return Shape(numbers_per_token=layers * (latent + rotary), longest=longest, formula=formula) if layers else None


def _whole(config: Mapping[str, Any], *names: str) -> int:
    """Return the first of these values that is a plausible integer; 0 when none is."""
    for name in names:
        value = config.get(name)
        if type(value) is int and 0 < value < 2**31:
            return value
    return 0
