"""Filter a client's fields by the allowlist of `passing.py`. Pure.

A field that is not allowed is dropped and reported, or refused if dropping it would change the answer. Allowed numbers
and lists that cost a worker memory or time have bounds. For most requests this is one comparison of sets.
"""

import functools
from typing import Any

import msgspec

from cortex.functions.passing import CHANGES_THE_ANSWER, MESSAGE_FIELDS, Passing
from cortex.router.dialects.core import grammar, images, wire
from cortex.router.dialects.core.errors import BadRequest, Kind

Fields = dict[str, msgspec.Raw]

MAX_CHOICES = 128
"""Largest number of answers per request: `n`, or `best_of`, times its prompts."""
MAX_INPUTS = 2048
"""Largest number of texts in an embeddings or rerank request."""

NUMBERS: dict[str, tuple[int, int]] = {
    "repeat_last_n": (-1, 65_536),
    "dry_penalty_last_n": (-1, 65_536),
    "n_probs": (0, 100),
    "top_logprobs": (0, 100),
    "prompt_logprobs": (-1, 100),
    "min_keep": (0, 1024),
    "best_of": (1, 20),
    "n": (1, MAX_CHOICES),
    "truncate_prompt_tokens": (-1, 2**31 - 1),
    "top_n": (1, 2**31 - 1),
}
"""Minimum and maximum of numbers that determine a worker's memory or time."""
LENGTHS: dict[str, int] = {
    "stop": 128,
    "stop_sequences": 128,
    "stop_token_ids": 128,
    "bad_words": 128,
    "logit_bias": 1024,
    "allowed_token_ids": 4096,
    "samplers": 32,
    "dry_sequence_breakers": 64,
    "modalities": 8,
}
"""Largest number of elements in lists that a worker scans for every token."""
OWN = frozenset({"keep_alive"})
"""Fields that cortex itself reads, and no worker gets."""
_STREAM_OPTIONS = frozenset({"include_usage", "continuous_usage_stats", "include_obfuscation"})
_BOUNDED = (
    frozenset(NUMBERS) | frozenset(LENGTHS) | grammar.FIELDS | {"chat_template_kwargs", "stream_options", "logprobs"}
)
_LONGEST_VALUE = 1024
_MAX_LOGPROBS = 100


class FilterResult(msgspec.Struct, frozen=True):
    """The fields to forward, and the names of the dropped ones."""

    fields: Fields
    dropped: tuple[str, ...] = ()


def filter_fields(fields: Fields, passing: Passing) -> FilterResult:
    """Return the fields to forward. Raises BadRequest for a field that is refused or out of bounds."""
    if _any_value(passing.fields, passing.allow).issuperset(fields):
        return FilterResult(fields)
    names = fields.keys()
    unlisted = (names - passing.fields) | (names & OWN)
    bounded, extra = names & _BOUNDED, names & passing.allow
    for name in sorted(unlisted & CHANGES_THE_ANSWER):
        if bytes(fields[name]) not in _EMPTY:
            raise not_allowed(name)
    dropped = list(unlisted - OWN)
    listed = {name: value for name, value in fields.items() if name not in unlisted}
    for name in bounded - unlisted:
        _check(name, listed, passing, dropped)
    for name in extra:
        images.refuse_addresses(msgspec.json.decode(fields[name]), name)
    return FilterResult(listed, tuple(sorted(dropped)))


@functools.lru_cache(1024)
def _any_value(fields: frozenset[str], allow: frozenset[str]) -> frozenset[str]:
    """Return the fields that pass whatever their value is."""
    return fields - OWN - _BOUNDED - allow


_EMPTY = frozenset({b"null", b'""', b"[]", b"{}", b"false"})


def not_allowed(name: str) -> BadRequest:
    """Return the error for a field that is not allowed."""
    return BadRequest(
        f"'{name}' is not accepted from clients; an operator can allow it for a function (allow = [...])",
        name,
        Kind.UNSUPPORTED,
    )


def _check(name: str, fields: Fields, passing: Passing, dropped: list[str]) -> None:
    """Check one field against its bounds. Raises BadRequest."""
    if name in grammar.FIELDS:
        looser = grammar.check_field(name, fields[name], passing.allow)
        if looser is not None:
            fields[name] = looser
        return
    value: Any = msgspec.json.decode(fields[name])
    if value is None:
        return
    if name in NUMBERS:
        minimum, maximum = NUMBERS[name]
        _check_number(name, value, minimum, maximum)
    elif name == "logprobs" and not isinstance(value, bool):
        _check_number(name, value, 0, _MAX_LOGPROBS)
    elif name in LENGTHS:
        if isinstance(value, (list, dict)):
            check_length(name, len(value))
    elif name == "chat_template_kwargs" and name not in passing.allow:
        _filter_object(name, value, fields, dropped, passing.template_names, scalar=True)
    elif name == "stream_options":
        _filter_object(name, value, fields, dropped, _STREAM_OPTIONS, scalar=True)


def _check_number(name: str, value: object, minimum: int, maximum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRequest("expected a number", name)
    if not minimum <= value <= maximum:
        raise BadRequest(f"expected a number from {minimum} to {maximum}", name)


def _filter_object(
    name: str, value: Any, fields: Fields, dropped: list[str], names: frozenset[str], *, scalar: bool
) -> None:
    """Drop the keys of an object that are not in `names`; with `scalar`, those with nested or long values too."""
    if not isinstance(value, dict):
        raise BadRequest("expected an object", name)
    listed = {key: member for key, member in value.items() if key in names and not (scalar and _is_large(member))}
    if len(listed) < len(value):
        dropped += [f"{name}.{key}" for key in value if key not in listed]
        fields[name] = msgspec.Raw(msgspec.json.encode(listed))


def _is_large(value: object) -> bool:
    return isinstance(value, (dict, list)) or (isinstance(value, str) and len(value) > _LONGEST_VALUE)


def plain_messages(raw: msgspec.Raw) -> tuple[msgspec.Raw, list[str]]:
    """Return chat messages without the fields that are not allowed, and the names of those fields."""
    messages: Any = wire.decode_parts(raw)
    dropped: set[str] = set()
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            for name in message.keys() - MESSAGE_FIELDS:
                dropped.add(f"messages.{name}")
                del message[name]
    plain = wire.encode_parts(messages) if isinstance(messages, list) else msgspec.json.encode(messages)
    return msgspec.Raw(plain), sorted(dropped)


def unused_fields(fields: Fields, used: frozenset[str]) -> tuple[str, ...]:
    """Return the names of a request's fields that the translation did not use."""
    return tuple(sorted(fields.keys() - used - OWN))


def check_length(name: str, length: int) -> None:
    """Raise BadRequest for a list that exceeds its bound in `LENGTHS`."""
    if length > LENGTHS[name]:
        raise BadRequest(f"expected at most {LENGTHS[name]} elements", name)


_MAX_NAMES, _LONGEST_NAME = 16, 64


def header(dropped: tuple[str, ...]) -> str:
    """Return the value of `x-cortex-dropped`: the first names, in ASCII, and the number of the others."""
    if not dropped:
        return ""
    names = ["".join(c if c.isascii() and (c.isalnum() or c in "_.-[]") else "?" for c in n) for n in dropped]
    first = [name[:_LONGEST_NAME] for name in names[:_MAX_NAMES]]
    if len(names) > _MAX_NAMES:
        first.append(f"+{len(names) - _MAX_NAMES}")
    return ", ".join(first)
