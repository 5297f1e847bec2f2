"""The streamed arguments of one tool call, kept parseable at every moment.

Clients parse the arguments after every piece, and one invalid character makes an SDK discard the whole answer. So the
output is always a prefix of a valid JSON object: an incomplete token (half an escape, a partial number) is held back.
Three model errors are repaired: a raw line break inside a string, an invalid escape (`\\d`), half a surrogate pair. Any
other error breaks the arguments: output stops, and `json()` has the members that were complete before it.

    (before) ─{→ VALUE ⇄ STRING/ATOM ⇄ AFTER ─}→ complete        any state ─error→ broken
"""

import re

# Deeper than any tool's input; the SDKs' parsers stop at 200.
MAX_DEPTH = 100

_PLAIN = re.compile(r'[^"\\\x00-\x1f\ud800-\udfff]+')
_SPACE = re.compile(r"[ \t\n\r]+")
_ATOM = re.compile(r"[-+.0-9a-zA-Z]+")
_VALID_ATOM = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3})?")
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_HALF_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_CONTROL = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

# The next expected token.
_START, _VALUE, _ITEM, _KEY, _NEXT_KEY, _COLON, _AFTER, _STRING = range(8)


class Arguments:
    """`feed()` returns the text to forward; it never raises."""

    def __init__(self) -> None:
        self.complete = False
        self.broken = False
        self._pending = ""
        self._state = _START
        self._string_is_key = False
        self._open: list[str] = []  # closing brackets of the open containers
        self._sent: list[str] = []
        self._length = 0
        self._safe = 0  # up to here the output is valid...
        self._closing = ""  # ...with these brackets appended

    @property
    def final(self) -> bool:
        """Further input cannot change the arguments."""
        return self.complete or self.broken

    @property
    def truncated(self) -> bool:
        """The input ended inside valid JSON."""
        return not (self.complete or self.broken or self.intact)

    @property
    def is_empty(self) -> bool:
        """No text was forwarded."""
        return not self._sent

    @property
    def intact(self) -> bool:
        """A complete object, or no input (some workers send "" or null for `{}`)."""
        return self.complete or (not self._sent and not self.broken and self._pending in ("", "null"))

    def feed(self, text: str) -> str:
        if self.complete or self.broken:
            return ""
        if self._state == _STRING and not self._pending and _PLAIN.fullmatch(text):
            return self._send(text)  # the common case
        text = self._pending + text
        self._pending = ""
        out: list[str] = []
        at = 0
        while at < len(text) and not self.final:
            token, at = self._in_string(text, at) if self._state == _STRING else self._token(text, at)
            if token:
                out.append(self._send(token))
                self._mark()
        return "".join(out)

    def json(self) -> bytes:
        """Return the object, or the members that were complete when it ended."""
        if not self._safe:
            return b"{}"
        return ("".join(self._sent)[: self._safe] + self._closing).encode()

    def _send(self, token: str) -> str:
        self._sent.append(token)
        self._length += len(token)
        return token

    def _mark(self) -> None:
        """Record the current length as a point where appending the closing brackets gives valid JSON."""
        if self._state in (_AFTER, _ITEM, _KEY) or self.complete:
            self._safe = self._length
            self._closing = "".join(reversed(self._open))

    def _hold(self, text: str, at: int) -> tuple[str, int]:
        self._pending = text[at:]
        return "", len(text)

    def _break(self, text: str) -> tuple[str, int]:
        self.broken = True
        return "", len(text)

    def _token(self, text: str, at: int) -> tuple[str, int]:
        if space := _SPACE.match(text, at):
            return ("" if self._state == _START else space[0]), space.end()
        character, state = text[at], self._state
        if character in "{[" and (state in (_VALUE, _ITEM) or (state == _START and character == "{")):
            if len(self._open) == MAX_DEPTH:
                return self._break(text)
            self._open.append("}" if character == "{" else "]")
            self._state = _KEY if character == "{" else _ITEM
        elif character == '"' and state in (_VALUE, _ITEM, _KEY, _NEXT_KEY):
            self._string_is_key = state in (_KEY, _NEXT_KEY)
            self._state = _STRING
        elif character == ":" and state == _COLON:
            self._state = _VALUE
        elif character == "," and state == _AFTER:
            self._state = _NEXT_KEY if self._open[-1] == "}" else _VALUE
        elif character in "}]" and (
            (state == _AFTER and self._open[-1] == character)
            or (state == _KEY and character == "}")
            or (state == _ITEM and character == "]")
        ):
            self._open.pop()
            self.complete = not self._open
            self._state = _AFTER
        elif state in (_VALUE, _ITEM):
            return self._atom(text, at)
        else:
            return self._null(text, at)
        return character, at + 1

    def _null(self, text: str, at: int) -> tuple[str, int]:
        # Some workers send a literal null for no arguments.
        if self._state == _START and "null".startswith(text[at:].rstrip()):
            return self._hold(text, at)
        return self._break(text)

    def _atom(self, text: str, at: int) -> tuple[str, int]:
        match = _ATOM.match(text, at)
        if match is None:
            return self._break(text)
        if match.end() == len(text):
            return self._hold(text, at) if len(text) - at < 400 else self._break(text)
        if not _VALID_ATOM.fullmatch(match[0]):
            return self._break(text)
        self._state = _AFTER
        return match[0], match.end()

    def _in_string(self, text: str, at: int) -> tuple[str, int]:
        if plain := _PLAIN.match(text, at):
            return plain[0], plain.end()
        character = text[at]
        if character == '"':
            self._state = _COLON if self._string_is_key else _AFTER
            return character, at + 1
        if character != "\\":
            return (_CONTROL.get(character) or (f"\\u{ord(character):04x}" if character < " " else "\\ufffd")), at + 1
        if _HALF_ESCAPE.match(text, at):
            return self._hold(text, at)
        escape = _ESCAPE.match(text, at)
        if escape is None:
            return "\\\\", at + 1  # a literal backslash
        if escape[0][1] == "u" and escape[0][2] in "dD" and escape[0][3] not in "01234567":
            return self._surrogate(text, escape)
        return escape[0], escape.end()

    def _surrogate(self, text: str, first: re.Match[str]) -> tuple[str, int]:
        """Pass a surrogate pair; replace a lone surrogate, which parsers reject."""
        if first[0][3] in "89abAB":
            second = _ESCAPE.match(text, first.end())
            if second and second[0][1:3] in ("ud", "uD") and second[0][3] in "cdefCDEF":
                return first[0] + second[0], second.end()
            rest = text[first.end() :]
            if not rest or _HALF_ESCAPE.match(rest):
                return self._hold(text, first.start())
        return "\\ufffd", first.end()
