"""Reads a running worker's `/v1/models`: context length and vision of each model.

These override the facts from the weights: the engine may have a lower limit, or less memory.
"""

from typing import Any

from msgspec import Struct

from cortex.platform import model_list, untrusted

MOST_CONTEXT = 1 << 30
"""Tokens. A larger number is invalid."""


class ServedModel(Struct, frozen=True):
    """Facts about a model from its worker; 0 and None mean unknown."""

    context: int = 0
    vision: bool | None = None
    cache_mb: int = 0
    """Its KV cache on each device, from its log."""


def read(body: bytes) -> dict[str, ServedModel]:
    """Return a worker's models by id, from vLLM's `max_model_len` or llama-server's `meta` and `architecture`. The
    latter's `n_ctx` is that of one slot, and so of one request.

    Raises ValueError for a body that is not JSON.
    """
    return {name: _served_model(entry) for name, entry in model_list.read(body).items()}


def _served_model(entry: dict[str, Any]) -> ServedModel:
    context = entry.get("max_model_len") or _object(entry.get("meta")).get("n_ctx")
    modalities = _object(entry.get("architecture")).get("input_modalities")
    return ServedModel(
        context=untrusted.positive(context, MOST_CONTEXT),
        vision="image" in modalities if isinstance(modalities, list) else None,
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
