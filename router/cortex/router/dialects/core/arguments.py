"""The arguments of one tool call, as they arrive: JSON that a client will parse, before it is complete.

Clients parse what they have after every piece, and one invalid letter makes an SDK throw the whole answer away.
So what goes out is at every moment the beginning of a valid JSON object: a token that is not decided yet (half an
escape, a number that may go on) is held back. Models slip in three ways that are mended in passing: a raw line
break inside a string, a backslash that escapes nothing (`\\d`), half a surrogate pair. Any other mistake breaks
the arguments: nothing more goes out, and `json()` has the members that were complete before it.

    (before) ─{→ VALUE ⇄ STRING/ATOM ⇄ AFTER ─}→ complete        any state ─mistake→ broken
"""

import re

# Deeper than any tool's input; the SDKs' own parsers stop at 200.
MAX_DEPTH = 100

_PLAIN = re.compile(r'[^"\\\x00-\x1f\ud800-\udfff]+')
_SPACE = re.compile(r"[ \t\n\r]+")
_ATOM = re.compile(r"[-+.0-9a-zA-Z]+")
_VALID_ATOM = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3})?")
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_HALF_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_CONTROL = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

# What may come next.
_START, _VALUE, _ITEM, _KEY, _NEXT_KEY, _COLON, _AFTER, _STRING = range(8)


class Arguments:
    """`feed()` returns what may be passed on; it never raises."""

    def __init__(self) -> None:
        self.complete = False
        self.broken = False
        self._held = ""
        self._state = _START
        self._string_is_key = False
        self._open: list[str] = []  # the closing brackets still owed
        self._sent: list[str] = []
        self._length = 0
        self._safe = 0  # up to here everything sent is whole...
        self._owed = ""  # ...once these brackets are closed

    @property
    def settled(self) -> bool:
        """Nothing that arrives can change the arguments any more."""
        return self.complete or self.broken

    @property
    def cut(self) -> bool:
        """They were going well and then just ended."""
        return not (self.complete or self.broken or self.intact)

    @property
    def silent(self) -> bool:
        """Nothing has gone out."""
        return not self._sent

    @property
    def intact(self) -> bool:
        """Whole as it stands: an object, or none at all (some workers send "" or null for `{}`)."""
        return self.complete or (not self._sent and not self.broken and self._held in ("", "null"))

    def feed(self, text: str) -> str:
        if self.complete or self.broken:
            return ""
        if self._state == _STRING and not self._held and _PLAIN.fullmatch(text):
            return self._send(text)  # nearly every piece of nearly every call
        text = self._held + text
        self._held = ""
        out: list[str] = []
        at = 0
        while at < len(text) and not self.settled:
            token, at = self._in_string(text, at) if self._state == _STRING else self._token(text, at)
            if token:
                out.append(self._send(token))
                self._mark()
        return "".join(out)

    def json(self) -> bytes:
        """The object, or as much of it as was whole when it ended, in the words of the model."""
        if not self._safe:
            return b"{}"
        return ("".join(self._sent)[: self._safe] + self._owed).encode()

    def _send(self, token: str) -> str:
        self._sent.append(token)
        self._length += len(token)
        return token

    def _mark(self) -> None:
        """Remember the last place where closing the brackets gives what an SDK would have parsed."""
        if self._state in (_AFTER, _ITEM, _KEY) or self.complete:
            self._safe = self._length
            self._owed = "".join(reversed(self._open))

    def _hold(self, text: str, at: int) -> tuple[str, int]:
        self._held = text[at:]
        return "", len(text)

    def _break(self, text: str) -> tuple[str, int]:
        self.broken = True
        return "", len(text)

    def _token(self, text: str, at: int) -> tuple[str, int]:
        if space := _SPACE.match(text, at):
            return ("" if self._state == _START else space[0]), space.end()
        letter, state = text[at], self._state
        if letter in "{[" and (state in (_VALUE, _ITEM) or (state == _START and letter == "{")):
            if len(self._open) == MAX_DEPTH:
                return self._break(text)
            self._open.append("}" if letter == "{" else "]")
            self._state = _KEY if letter == "{" else _ITEM
        elif letter == '"' and state in (_VALUE, _ITEM, _KEY, _NEXT_KEY):
            self._string_is_key = state in (_KEY, _NEXT_KEY)
            self._state = _STRING
        elif letter == ":" and state == _COLON:
            self._state = _VALUE
        elif letter == "," and state == _AFTER:
            self._state = _NEXT_KEY if self._open[-1] == "}" else _VALUE
        elif letter in "}]" and (
            (state == _AFTER and self._open[-1] == letter)
            or (state == _KEY and letter == "}")
            or (state == _ITEM and letter == "]")
        ):
            self._open.pop()
            self.complete = not self._open
            self._state = _AFTER
        elif state in (_VALUE, _ITEM):
            return self._atom(text, at)
        else:
            return self._nothing(text, at)
        return letter, at + 1

    def _nothing(self, text: str, at: int) -> tuple[str, int]:
        # Some workers say "no arguments" with a literal null.
        if self._state == _START and "null".startswith(text[at:].rstrip()):
            return self._hold(text, at)
        return self._break(text)

    def _atom(self, text: str, at: int) -> tuple[str, int]:
        found = _ATOM.match(text, at)
        if found is None:
            return self._break(text)
        if found.end() == len(text):
            return self._hold(text, at) if len(text) - at < 400 else self._break(text)
        if not _VALID_ATOM.fullmatch(found[0]):
            return self._break(text)
        self._state = _AFTER
        return found[0], found.end()

    def _in_string(self, text: str, at: int) -> tuple[str, int]:
        if plain := _PLAIN.match(text, at):
            return plain[0], plain.end()
        letter = text[at]
        if letter == '"':
            self._state = _COLON if self._string_is_key else _AFTER
            return letter, at + 1
        if letter != "\\":
            return (_CONTROL.get(letter) or (f"\\u{ord(letter):04x}" if letter < " " else "\\ufffd")), at + 1
        if _HALF_ESCAPE.match(text, at):
            return self._hold(text, at)
        escape = _ESCAPE.match(text, at)
        if escape is None:
            return "\\\\", at + 1  # a backslash that the model meant as one
        if escape[0][1] == "u" and escape[0][2] in "dD" and escape[0][3] not in "01234567":
            return self._surrogate(text, escape)
        return escape[0], escape.end()

    def _surrogate(self, text: str, first: re.Match[str]) -> tuple[str, int]:
        """Two halves make a letter; a half alone makes parsers fail."""
        if first[0][3] in "89abAB":
            second = _ESCAPE.match(text, first.end())
            if second and second[0][1:3] in ("ud", "uD") and second[0][3] in "cdefCDEF":
                return first[0] + second[0], second.end()
            rest = text[first.end() :]
            if not rest or _HALF_ESCAPE.match(rest):
                return self._hold(text, first.start())
        return "\\ufffd", first.end()
