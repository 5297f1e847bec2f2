"""The list of models in Anthropic's dialect, which the header `anthropic-version` selects.

A `Card` describes a function; an unknown field is omitted, never guessed.
"""

import functools
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

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
    capabilities: msgspec.Raw
    max_input_tokens: int | None = None
    max_tokens: int | None = None
    lifecycle: Literal["active"] = msgspec.field(default_factory=lambda: "active")


class Page(NamedTuple):
    """The ids of one page, and what the answer says of them beside `data`."""

    ids: Sequence[str]
    has_more: bool

    def others(self) -> dict[str, Any]:
        """Return the fields beside `data`."""
        first, last = (self.ids[0], self.ids[-1]) if self.ids else (None, None)
        return {"has_more": self.has_more, "first_id": first, "last_id": last}


def anthropic_model(card: Card) -> AnthropicModel:
    return AnthropicModel(
        id=card.id,
        display_name=card.id,
        created_at=datetime.fromtimestamp(card.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        max_input_tokens=card.max_input_tokens,
        max_tokens=card.max_output_tokens,
        capabilities=_capabilities(card.thinking, card.vision, card.effort),
    )


def anthropic_page(
    ids: Sequence[str], limit: str | None = None, after_id: str | None = None, before_id: str | None = None
) -> Page:
    """Return one page of the models for the raw query parameters; an unknown cursor is ignored. Raises `BadRequest`."""
    size = _size(limit)
    if before_id is not None:
        end = ids.index(before_id) if before_id in ids else len(ids)
        return Page(ids[max(0, end - size) : end], end > size)
    start = ids.index(after_id) + 1 if after_id in ids else 0
    return Page(ids[start : start + size], start + size < len(ids))


def _size(limit: str | None) -> int:
    if limit is None:
        return _PAGE
    size = int(limit) if limit.isascii() and limit.isdecimal() and len(limit) <= _DIGITS else 0
    if not 1 <= size <= _LARGEST_PAGE:
        raise BadRequest(f"expected a number from 1 to {_LARGEST_PAGE}", "limit")
    return size


@functools.lru_cache(maxsize=256)
def _capabilities(reasons: bool, vision: bool, effort: tuple[str, ...]) -> msgspec.Raw:
    """Return every capability of the SDK's type, which requires them all, as JSON: models share a few sets of them."""
    thinking, no = _support(reasons), _support(False)
    types = {"adaptive": thinking, "enabled": thinking, "disabled": _support(True), "between_tools": no}
    levels = {name: _support(name in effort) for name in ("low", "medium", "high", "xhigh", "max")}
    capabilities = {
        "batch": no,
        "citations": no,
        "code_execution": no,
        "context_management": no,
        "effort": {**_support(bool(effort)), **levels},
        "image_input": _support(vision),
        "pdf_input": no,
        "server_tools": {**no, "code_execution": no, "web_search": no},
        "structured_outputs": _support(True),
        "thinking": {**thinking, "types": types},
    }
    return msgspec.Raw(msgspec.json.encode(capabilities))


def _support(supported: bool) -> dict[str, Any]:
    return {"supported": supported}
