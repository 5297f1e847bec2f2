"""Ollama's lists and descriptions of models, from what cortex knows of a function. An unknown field is omitted."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from cortex.router.dialects.ollama.answer import instant

API_VERSION = "0.13.5"
"""The version of Ollama's API that this is: clients refuse one that is too old for them."""
_ARCHITECTURE = "cortex"
_NEVER = 4102444800.0
"""The expiry of an instance that does not expire: the year 2100."""
_MIB = 1024 * 1024
_CAPABILITIES = {"vision": "vision", "tools": "tools", "reasoning": "thinking"}


class Details(msgspec.Struct):
    """Details of the weights. Ollama writes "" for unknown values, and clients expect every field."""

    parent_model: str = ""
    format: str = ""
    family: str = ""
    families: list[str] = []
    parameter_size: str = ""
    quantization_level: str = ""


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A function under one of its names. `created` is a Unix time."""

    name: str
    revision: str
    created: float
    is_gguf: bool = False
    chats: bool = True
    embeds: bool = False
    abilities: Sequence[str] = ()
    """As in `/v1/models`."""
    context: int | None = None

    @property
    def details(self) -> Details:
        return Details(format="gguf" if self.is_gguf else "")

    @property
    def capabilities(self) -> list[str]:
        """Return its abilities by Ollama's names."""
        if not self.chats:
            return ["embedding"] if self.embeds else []
        more = [_CAPABILITIES[ability] for ability in self.abilities if ability in _CAPABILITIES]
        return ["completion", *more, *(["embedding"] if self.embeds else [])]


class Listed(msgspec.Struct, omit_defaults=True):
    name: str
    model: str
    modified_at: str
    digest: str
    details: Details


class Running(msgspec.Struct):
    name: str
    model: str
    digest: str
    details: Details
    expires_at: str
    size: int
    size_vram: int
    context_length: int | UnsetType = UNSET


class Shown(msgspec.Struct):
    """The answer of `/api/show`."""

    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str
    license: str = ""
    modelfile: str = ""
    parameters: str = ""
    template: str = ""


def list_entry(card: Card) -> Listed:
    return Listed(card.name, card.name, instant(card.created), _digest(card), card.details)


def running(card: Card, *, memory_mb: int, on_devices: bool, ends_at: float | None) -> Running:
    """Return a running function. `ends_at` is when it ends if it stays idle; None: it stays."""
    size = memory_mb * _MIB
    return Running(
        card.name,
        card.name,
        _digest(card),
        card.details,
        instant(_NEVER if ends_at is None else ends_at),
        size,
        size if on_devices else 0,
        card.context or UNSET,
    )


def show_answer(card: Card) -> Shown:
    info: dict[str, Any] = {"general.architecture": _ARCHITECTURE, "general.basename": card.name}
    if card.context:
        info[f"{_ARCHITECTURE}.context_length"] = card.context
    return Shown(card.details, info, card.capabilities, instant(card.created))


def _digest(card: Card) -> str:
    return sha256(card.revision.encode()).hexdigest()


class Named(msgspec.Struct):
    """A request about one model: `name` is what older clients send."""

    model: str = ""
    name: str = ""
    stream: bool = True

    @property
    def of(self) -> str:
        return self.model or self.name


class Progress(msgspec.Struct, omit_defaults=True):
    """A line of `/api/pull`. Bytes."""

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0


def pulling(card: Card, completed: int, total: int) -> Progress:
    digest = _digest(card)
    return Progress(f"pulling {digest[:12]}", f"sha256:{digest}", total, min(completed, total))


def without_tag(name: str) -> str:
    """Return a name without the tag that Ollama's clients add to names without one."""
    return name.removesuffix(":latest")
