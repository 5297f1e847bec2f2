"""What a worker says of itself once it is up, in its `/v1/models`: how long a request may be, and whether it sees.

This beats what the weights say: the engine may have been given less, or have found no memory for more.
"""

from typing import Any

from msgspec import Struct

from cortex.platform import model_list, untrusted

MOST_CONTEXT = 1 << 30
"""Tokens. A larger number is no context but a mistake."""


class ServedModel(Struct, frozen=True):
    """0 and None: the worker does not say."""

    context: int = 0
    vision: bool | None = None


def read(body: bytes) -> dict[str, ServedModel]:
    """Return by id the models that a worker lists: with vLLM's `max_model_len`, llama-server's `meta` and
    `architecture`. The latter's `n_ctx` is what one of its slots has, so what one request may use.

    Raises ValueError for a body that is not JSON.
    """
    return {name: _card(entry) for name, entry in model_list.read(body).items()}


def _card(entry: dict[str, Any]) -> ServedModel:
    context = entry.get("max_model_len") or _object(entry.get("meta")).get("n_ctx")
    senses = _object(entry.get("architecture")).get("input_modalities")
    return ServedModel(
        context=untrusted.positive(context, MOST_CONTEXT),
        vision="image" in senses if isinstance(senses, list) else None,
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
