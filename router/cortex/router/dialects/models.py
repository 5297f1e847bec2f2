"""The list of models in Anthropic's dialect, which the header `anthropic-version` selects.

A `Card` describes a function; an unknown field is omitted, never guessed.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from cortex.router.dialects.core.errors import BadRequest

_LARGEST_PAGE = 1000
_DIGITS = len(str(_LARGEST_PAGE))
_PAGE = 20


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A function, as a model of the list."""

    id: str
    created: int = 0
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    vision: bool = False
    thinking: bool = False
    effort: tuple[str, ...] = ()


class AnthropicModel(msgspec.Struct, tag_field="type", tag="model", omit_defaults=True):
    id: str
    display_name: str
    created_at: str
    capabilities: dict[str, Any]
    max_input_tokens: int | None = None
    max_tokens: int | None = None
    lifecycle: Literal["active"] = msgspec.field(default_factory=lambda: "active")


class AnthropicPage(msgspec.Struct):
    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


def anthropic_model(card: Card) -> AnthropicModel:
    return AnthropicModel(
        id=card.id,
        display_name=card.id,
        created_at=datetime.fromtimestamp(card.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        max_input_tokens=card.max_input_tokens,
        max_tokens=card.max_output_tokens,
        capabilities=_capabilities(card),
    )


def anthropic_page(
    ids: Sequence[str],
    card: Callable[[str], Card],
    limit: str | None = None,
    after_id: str | None = None,
    before_id: str | None = None,
) -> AnthropicPage:
    """Return one page of the models for the raw query parameters; an unknown cursor is ignored. `card` describes a
    model of the page. Raises `BadRequest`."""
    size = _size(limit)
    if before_id is not None:
        end = ids.index(before_id) if before_id in ids else len(ids)
        page, has_more = ids[max(0, end - size) : end], end > size
    else:
        start = ids.index(after_id) + 1 if after_id in ids else 0
        page, has_more = ids[start : start + size], start + size < len(ids)
    data = [anthropic_model(card(id)) for id in page]
    return AnthropicPage(data, has_more, data[0].id if data else None, data[-1].id if data else None)


def _size(limit: str | None) -> int:
    if limit is None:
        return _PAGE
    size = int(limit) if limit.isascii() and limit.isdecimal() and len(limit) <= _DIGITS else 0
    if not 1 <= size <= _LARGEST_PAGE:
        raise BadRequest(f"expected a number from 1 to {_LARGEST_PAGE}", "limit")
    return size


def _capabilities(card: Card) -> dict[str, Any]:
    """Return every capability of the SDK's type, which requires them all."""
    thinking, no = _support(card.thinking), _support(False)
    types = {"adaptive": thinking, "enabled": thinking, "disabled": _support(True), "between_tools": no}
    levels = {name: _support(name in card.effort) for name in ("low", "medium", "high", "xhigh", "max")}
    return {
        "batch": no,
        "citations": no,
        "code_execution": no,
        "context_management": no,
        "effort": {**_support(bool(card.effort)), **levels},
        "image_input": _support(card.vision),
        "pdf_input": no,
        "server_tools": {**no, "code_execution": no, "web_search": no},
        "structured_outputs": _support(True),
        "thinking": {**thinking, "types": types},
    }


def _support(supported: bool) -> dict[str, Any]:
    return {"supported": supported}
