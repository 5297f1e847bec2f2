"""How much memory an instance will take, from what its model's configuration says and how large its files are. Pure.
The only place where this is reckoned: placement goes by it, and `cortex fn estimate` shows it.

    weights + cache + overhead
    cache    = tokens × bytes per token (where the configuration does not tell: a fifth of the weights)
    tokens   = context × requests at a time (without `context`: the model's own longest, once)
    per token = 2 bytes × Σ over attention layers of key-value heads × (key width + value width)

The cache's formula is that of Pope et al., "Efficiently Scaling Transformer Inference" (arXiv:2211.05102, §2.1),
with the key-value heads of grouped-query attention (Ainslie et al., arXiv:2305.13245). Multi-head latent attention
keeps one compressed vector a layer instead, of the latent's width and the rotary part's (DeepSeek-V2,
arXiv:2405.04434, §2.1.2). Layers without attention keep no cache; a sliding window is counted as if it were the whole
context. So the cache is what all requests together take at their longest. The overhead is a rule of thumb: an engine's
buffers and its GPU context. What an instance really took is measured, and beats all this from the second start on.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from cortex.functions.servers import max_concurrency, server_of
from cortex.functions.spec import Engine, Function

MIB = 1024 * 1024
CACHE_BYTES = 2
"""Keys and values are kept at 16 bits unless the engine is told otherwise."""
CACHE_OF_WEIGHTS = 0.2
"""What the cache takes where nobody tells, of the weights."""
OVERHEAD_MB = {Engine.VLLM: 3072, Engine.LLAMACPP: 512, Engine.COMMAND: 1024, Engine.FAKE: 512}
"""Activations, compute buffers, CUDA context and graphs, on each device."""


class Shape(Struct, frozen=True, kw_only=True):
    """What of a model's configuration the cache depends on."""

    numbers_per_token: int
    """Keys and values, over all layers."""
    longest: int = 0
    """Tokens the model was made for."""
    said: str = ""
    """How the number came about."""


class Estimate(Struct, frozen=True, kw_only=True):
    """What one instance will take, in MiB, and how it is reckoned."""

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
    """What `vram_mb` says; it beats the estimate."""
    here: bool = False
    """The weights are on the host that was asked."""

    def within(self, most_mb: int) -> int:
        """Return what to ask for on each device where there is at most so much on any.

        A cache may be smaller, if it has to: vLLM fills what it is given, and a sliding window takes less than is
        reckoned here. Weights and overhead may not. What is declared or measured is never argued with here.
        """
        least = -(-(self.weights_mb + self.overhead_mb) // self.devices)
        return min(self.per_device_mb, max(most_mb, least))


def estimate(function: Function, weights_mb: int, shape: Shape | None, *, here: bool = False) -> Estimate:
    """Reckon what an instance takes."""
    overhead = OVERHEAD_MB[function.engine] * function.min_devices
    at_a_time = max_concurrency(function, server_of(function)) or function.target_concurrency
    tokens = function.context * at_a_time or (shape.longest if shape else 0)
    if shape is None:
        cache = round(weights_mb * CACHE_OF_WEIGHTS)
        said = "its configuration does not tell what the cache takes: a fifth of the weights is assumed"
    else:
        cache = -(-tokens * shape.numbers_per_token * CACHE_BYTES // MIB)
        per = f"{shape.numbers_per_token * CACHE_BYTES} bytes a token ({shape.said}, {CACHE_BYTES} bytes each)"
        times = f"{function.context} × {at_a_time} at a time" if function.context else "its longest"
        said = f"cache: {tokens} tokens ({times}) × {per}"
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
        formula=f"weights {weights_mb} + cache {cache} + overhead {overhead} MiB; {said}",
        declared_mb=function.vram_mb,
        here=here,
    )


def shape_of_config(config: Mapping[str, Any]) -> Shape | None:
    """Read a `config.json` of HuggingFace's; None when it does not say enough."""
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
    """Read the metadata of a GGUF; None when it does not say enough."""
    family = head.get("general.architecture", "")

    def told(name: str) -> int:
        return _whole(head, f"{family}.{name}")

    layers, heads = told("block_count"), told("attention.head_count")
    if every := told("full_attention_interval"):
        layers //= every
    width = told("attention.key_length") or (told("embedding_length") // heads if heads else 0)
    longest = told("context_length")
    if latent := told("attention.kv_lora_rank"):
        return _latent(layers, latent, told("rope.dimension_count"), longest)
    values = told("attention.value_length") or width
    return _plain(layers, told("attention.head_count_kv") or heads, width, values, longest)


def _plain(layers: int, heads: int, keys: int, values: int, longest: int) -> Shape | None:
    if not (layers and heads and keys):
        return None
    said = f"{layers} layers × {heads} heads × ({keys} + {values})"
    return Shape(numbers_per_token=layers * heads * (keys + values), longest=longest, said=said)


def _latent(layers: int, latent: int, rotary: int, longest: int) -> Shape | None:
    said = f"{layers} layers × ({latent} latent + {rotary} rotary)"
    return Shape(numbers_per_token=layers * (latent + rotary), longest=longest, said=said) if layers else None


def _whole(said: Mapping[str, Any], *names: str) -> int:
    """The first of these that is a number, and no nonsense; 0 when none is."""
    for name in names:
        value = said.get(name)
        if type(value) is int and 0 < value < 2**31:
            return value
    return 0
