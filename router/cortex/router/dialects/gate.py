"""What of a client's body goes on to a worker: the table of `passing.py`, applied to one request. Pure.

A field that does not pass is dropped and named, or refused where the answer would be another one without it. Of the
fields that pass, the numbers and lists that cost a worker memory or time have bounds of their own. Most requests hold
nothing but plain fields: for them this is two comparisons of sets.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from cortex.functions.passing import CHANGES_THE_ANSWER, MESSAGE_FIELDS, Passing
from cortex.router.dialects.core import grammar, images, wire
from cortex.router.dialects.core.errors import BadRequest, Kind

Fields = dict[str, msgspec.Raw]

MAX_CHOICES = 128
"""Answers of one request at most: `n`, or `best_of`, times its prompts."""
MAX_INPUTS = 2048
"""Texts of one embeddings or rerank request at most."""

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
"""The least and the most of numbers that a worker allocates or computes by."""
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
"""The most elements of lists that a worker goes through for every token."""
_STREAM_OPTIONS = frozenset({"include_usage", "continuous_usage_stats", "include_obfuscation"})
_LOOKED_AT = (
    frozenset(NUMBERS) | frozenset(LENGTHS) | grammar.FIELDS | {"chat_template_kwargs", "stream_options", "logprobs"}
)
_LONGEST_VALUE = 1024
_MAX_LOGPROBS = 100


class Admission(msgspec.Struct, frozen=True):
    """What of a body passes, and the names of what was dropped."""

    fields: Fields
    dropped: tuple[str, ...] = ()


def admit(fields: Fields, passing: Passing) -> Admission:
    """Return the fields that go on to a worker. Raises BadRequest for one that is refused or out of its bounds."""
    unlisted = fields.keys() - passing.fields
    look = fields.keys() & _LOOKED_AT
    extra = fields.keys() & passing.allow
    if not (unlisted or look or extra):
        return Admission(fields)
    for name in sorted(unlisted & CHANGES_THE_ANSWER):
        if bytes(fields[name]) not in _EMPTY:
            raise refusal(name)
    dropped = list(unlisted)
    kept = {name: value for name, value in fields.items() if name not in unlisted}
    for name in look - unlisted:
        _look(name, kept, passing, dropped)
    for name in extra:
        images.refuse_addresses(msgspec.json.decode(fields[name]), name)
    return Admission(kept, tuple(sorted(dropped)))


_EMPTY = frozenset({b"null", b'""', b"[]", b"{}", b"false"})


def refusal(name: str) -> BadRequest:
    """Return the refusal of a field that does not pass."""
    return BadRequest(
        f"'{name}' is not taken from clients here; an operator can allow it for a function (allow = [...])",
        name,
        Kind.UNSUPPORTED,
    )


def _look(name: str, fields: Fields, passing: Passing, dropped: list[str]) -> None:
    """Hold one field to its bounds."""
    if name in grammar.FIELDS:
        looser = grammar.check_field(name, fields[name], passing.allow)
        if looser is not None:
            fields[name] = looser
        return
    value: Any = msgspec.json.decode(fields[name])
    if value is None:
        return
    if name in NUMBERS:
        least, most = NUMBERS[name]
        _check_number(name, value, least, most)
    elif name == "logprobs" and not isinstance(value, bool):
        _check_number(name, value, 0, _MAX_LOGPROBS)
    elif name in LENGTHS:
        if isinstance(value, (list, dict)):
            check_length(name, len(value))
    elif name == "chat_template_kwargs" and name not in passing.allow:
        _keep(name, value, fields, dropped, passing.template_names, scalar=True)
    elif name == "stream_options":
        _keep(name, value, fields, dropped, _STREAM_OPTIONS, scalar=True)


def _check_number(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRequest("expected a number", name)
    if not least <= value <= most:
        raise BadRequest(f"expected a number from {least} to {most}", name)


def _keep(name: str, value: Any, fields: Fields, dropped: list[str], names: frozenset[str], *, scalar: bool) -> None:
    """Keep the names of a small object that pass; their values are short and hold nothing inside."""
    if not isinstance(value, dict):
        raise BadRequest("expected an object", name)
    kept = {key: one for key, one in value.items() if key in names and not (scalar and _is_large(one))}
    if len(kept) < len(value):
        dropped += [f"{name}.{key}" for key in value if key not in kept]
        fields[name] = msgspec.Raw(msgspec.json.encode(kept))


def _is_large(value: object) -> bool:
    return isinstance(value, (dict, list)) or (isinstance(value, str) and len(value) > _LONGEST_VALUE)


def plain_messages(raw: msgspec.Raw) -> tuple[msgspec.Raw, list[str]]:
    """Return the messages of a chat without the fields that are not on the list, and the names of those."""
    messages: Any = wire.decode_parts(raw)
    dropped: set[str] = set()
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            for name in message.keys() - MESSAGE_FIELDS:
                dropped.add(f"messages.{name}")
                del message[name]
    plain = wire.encode_parts(messages) if isinstance(messages, list) else msgspec.json.encode(messages)
    return msgspec.Raw(plain), sorted(dropped)


def unused(fields: Fields, taken: frozenset[str]) -> tuple[str, ...]:
    """Return the fields of a request that was translated which had no part in it."""
    return tuple(sorted(fields.keys() - taken))


def places(notes: Iterable[str]) -> tuple[str, ...]:
    """Return where a translation dropped something: each of its notes begins with the place."""
    return tuple(note.partition(":")[0] for note in notes)


def check_length(name: str, length: int) -> None:
    """Raise BadRequest for a list that is longer than a worker goes through for every token."""
    if length > LENGTHS[name]:
        raise BadRequest(f"expected at most {LENGTHS[name]} elements", name)


_MOST_NAMES, _LONGEST_NAME = 16, 64


def header(dropped: tuple[str, ...]) -> str:
    """Return the value of `x-cortex-dropped`: the first names, in ASCII, and how many more there are."""
    names = ["".join(c if c.isascii() and (c.isalnum() or c in "_.-[]") else "?" for c in n) for n in dropped]
    named = [name[:_LONGEST_NAME] for name in names[:_MOST_NAMES]]
    if len(names) > _MOST_NAMES:
        named.append(f"+{len(names) - _MOST_NAMES}")
    return ", ".join(named)
