"""Replacing the model's name in a request without touching any other byte. Pure.

Where client and worker speak the same dialect, a body is forwarded as it came; only the value of its top-level
`model` is spliced when the client used another name.
"""

import re

import msgspec

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]]')
_AFTER_KEY = re.compile(rb"\s*:\s*")


def with_model(body: bytes, name: str) -> bytes:
    """Return the body with the value of its top-level `model` replaced; every other byte stays as it is.

    `body` is valid JSON, an object with a string at `model` (it was read already). A key that is given twice is
    replaced twice, so that no reader of the body sees the old name.
    """
    value = msgspec.json.encode(name)
    pieces: list[bytes] = []
    depth, copied, value_at = 0, 0, -1
    for token in _TOKEN.finditer(body):
        text = token[0]
        if text in b"{[":
            depth += 1
        elif text in b"}]":
            depth -= 1
        elif depth == 1 and token.start() != value_at and _is_model(text):
            colon = _AFTER_KEY.match(body, token.end())
            if colon is None:  # a string value, not a key
                continue
            old = _TOKEN.match(body, colon.end())
            if old is None or not old[0].startswith(b'"'):
                continue
            pieces += (body[copied : colon.end()], value)
            copied, value_at = old.end(), old.start()
    pieces.append(body[copied:])
    return b"".join(pieces)


def _is_model(token: bytes) -> bool:
    if token == b'"model"':
        return True
    if b"\\" not in token or len(token) > 64:
        return False
    try:  # a key may be written with escapes: "\u006dodel" is "model" too
        return bool(msgspec.json.decode(token) == "model")
    except msgspec.DecodeError:
        return False
