"""What identifies a conversation whose saved prompt may be restored. Pure.

A chat client sends the whole conversation each time. So a request continues an earlier one if the earlier one's
messages are the first of its own, below the same tools and template variables. A request has a chain of digests, one
for each number of its first messages; the last one identifies the conversation, and is in the chain of every request
that continues it. A plain prompt is cut into pieces of one length.

A digest alone would tell who knows the same text. What leaves the router is a mark: a digest under the caller's salt,
which is secret, and under the name of the host that serves the conversation. So a host can neither find nor invent
marks for conversations that it has not served.
"""

import hashlib
import hmac
from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Raw, Struct

from cortex.router.dialects.core.large_object import Body

PIECE = 4096
"""Characters of a plain prompt per digest."""
MOST_MATCHED = 512
"""Digests of a request, counted from the last, that are compared."""
MARK_DIGITS = 32

Chain = tuple[bytes, ...]
"""The digests of a request, for one message more each."""


class _Body(Struct):
    messages: list[Raw] | None = None
    input: list[Raw] | str | None = None
    prompt: Raw = Raw()
    instructions: Raw = Raw()
    tools: Raw = Raw()
    chat_template_kwargs: Raw = Raw()


def chain_of(body: Body) -> Chain:
    """Return the chain of a worker's request; empty where it has no conversation, as with several prompts."""
    try:
        parsed = msgspec.json.decode(bytes(body), type=_Body)
        units = list(_units(parsed))
    except msgspec.MsgspecError:
        return ()
    digest = hashlib.sha256()
    for field in (parsed.instructions, parsed.tools, parsed.chat_template_kwargs):
        _add(digest, bytes(field))
    chain = []
    for unit in units:
        _add(digest, unit)
        chain.append(digest.copy().digest())
    return tuple(chain)


def _units(body: _Body) -> Iterator[bytes]:
    if body.messages is not None:
        yield from map(bytes, body.messages)
    elif isinstance(body.input, list):
        yield from map(bytes, body.input)
    elif isinstance(body.input, str):
        yield body.input.encode(errors="surrogatepass")
    elif bytes(body.prompt):
        text = msgspec.json.decode(body.prompt, type=str)
        for at in range(0, len(text) - PIECE + 1, PIECE):  # the rest may be continued
            yield text[at : at + PIECE].encode(errors="surrogatepass")


def _add(digest: "hashlib._Hash", unit: bytes) -> None:
    digest.update(len(unit).to_bytes(8))
    digest.update(unit)


def mark_of(salt: str, host: str, function: str, digest: bytes) -> str:
    """Return the mark of a conversation for one owner of cached prompts on one host."""
    purpose = f"context\0{host}\0{function}\0".encode() + digest
    return hmac.digest(salt.encode(), purpose, "sha256").hex()[:MARK_DIGITS]


def owner_of(salt: str, host: str) -> str:
    """Return the digest by which a host recognises the owner of cached prompts; empty: all callers share them."""
    return hmac.digest(salt.encode(), f"owner\0{host}".encode(), "sha256").hex()[:MARK_DIGITS] if salt else ""


def marks(salt: str, host: str, function: str, chain: Sequence[bytes]) -> Iterator[tuple[int, str]]:
    """Yield the marks of a request's conversation for a host, that of the most messages first, with their number."""
    for number in range(len(chain), max(0, len(chain) - MOST_MATCHED), -1):
        yield number, mark_of(salt, host, function, chain[number - 1])
