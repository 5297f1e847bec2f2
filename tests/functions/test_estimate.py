"""Estimates of an instance's memory, compared with values computed by hand."""

from typing import Any

import pytest

from cortex.functions.estimate import Shape, estimate, shape_of_config, shape_of_gguf
from cortex.functions.spec import Engine, Function

LLAMA_8B = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "max_position_embeddings": 131072,
}


@pytest.mark.parametrize(
    ("config", "per_token"),
    [
        (LLAMA_8B, 32 * 8 * 256),  # 128 KiB at 16 bits, as published
        ({**LLAMA_8B, "head_dim": 64}, 32 * 8 * 128),
        ({"text_config": LLAMA_8B, "model_type": "vlm"}, 32 * 8 * 256),
        ({"n_layer": 12, "n_head": 12, "n_embd": 768}, 12 * 12 * 128),  # GPT-2: every head has its own
        ({**LLAMA_8B, "layer_types": ["linear_attention"] * 24 + ["full_attention"] * 8}, 8 * 8 * 256),
        ({**LLAMA_8B, "full_attention_interval": 4}, 8 * 8 * 256),
        ({**LLAMA_8B, "num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 61 * 576),
    ],
)
def test_the_cache_size_is_computed_from_a_config(config: dict[str, Any], per_token: int) -> None:
    shape = shape_of_config(config)

    assert shape is not None
    assert shape.numbers_per_token == per_token


@pytest.mark.parametrize("config", [{}, {"num_hidden_layers": "32"}, {**LLAMA_8B, "num_hidden_layers": -1}])
def test_an_incomplete_config_gives_no_shape(config: dict[str, Any]) -> None:
    assert shape_of_config(config) is None


def test_the_cache_size_is_computed_from_gguf_metadata() -> None:
    head = {
        "general.architecture": "qwen3",
        "qwen3.block_count": 36,
        "qwen3.attention.head_count": 32,
        "qwen3.attention.head_count_kv": 8,
        "qwen3.attention.key_length": 128,
        "qwen3.embedding_length": 4096,
        "qwen3.context_length": 40960,
    }

    assert shape_of_gguf(head) == Shape(
        numbers_per_token=36 * 8 * 256, longest=40960, formula="36 layers × 8 heads × (128 + 128)"
    )
    assert shape_of_gguf({}) is None


def test_an_estimate_adds_weights_cache_and_overhead_over_all_devices() -> None:
    function = Function(id="f", engine=Engine.VLLM, context=8192, target_concurrency=4, min_devices=2)

    result = estimate(function, 16_000, shape_of_config(LLAMA_8B))

    assert (result.tokens, result.cache_mb) == (32768, 4096)
    assert result.total_mb == 16_000 + 4096 + 2 * 3072
    assert result.per_device_mb == result.total_mb // 2
    assert "32768 tokens (8192 × 4 at a time) × 131072 bytes a token" in result.formula


def test_without_a_context_the_models_maximum_counts_once() -> None:
    result = estimate(Function(id="f", engine=Engine.LLAMACPP), 1, shape_of_config(LLAMA_8B))

    assert (result.tokens, result.cache_mb) == (131072, 16384)


def test_without_a_shape_the_cache_is_a_fifth_of_the_weights() -> None:
    result = estimate(Function(id="f", engine=Engine.LLAMACPP, context=10), 1000, None)

    assert (result.cache_mb, result.total_mb) == (200, 1000 + 200 + 512)
    assert "lacks the numbers" in result.formula


def test_a_server_with_one_slot_has_one_context() -> None:
    function = Function(id="f", engine=Engine.LLAMACPP, server="llama_cpp.server", context=1000, target_concurrency=8)

    assert estimate(function, 1, shape_of_config(LLAMA_8B)).tokens == 1000


@pytest.mark.parametrize(
    ("most_mb", "expected_mb"),
    [
        (200_000, (16_000 + 32_768 + 2 * 3072) // 2),  # all of it
        (20_000, 20_000),  # with a smaller cache
        (9_000, 16_000 // 2 + 3072),  # never without its weights and overhead
    ],
)
def test_on_a_smaller_device_only_the_cache_shrinks(most_mb: int, expected_mb: int) -> None:
    function = Function(id="f", engine=Engine.VLLM, context=32_768, target_concurrency=8, min_devices=2)

    assert estimate(function, 16_000, shape_of_config(LLAMA_8B)).within(most_mb) == expected_mb
