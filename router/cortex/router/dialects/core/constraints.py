"""Bounds on what may constrain an answer: JSON schemas, regular expressions, grammars. Pure.

Engines compile constraints in the process that serves every client. Deep nesting overflows an engine's stack and nested
repetitions stall it, so both are measured first. Nested repetitions count as their product; an unbounded one counts as
`UNBOUNDED`. Optional parts and alternatives multiply the continuations that an engine follows at each token, so their
number is bounded, and repeating an expression that matches the empty string is refused.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from cortex.router.dialects.core.errors import BadRequest, Kind

MAX_DEPTH = 128
"""Levels of JSON in a schema."""
MAX_NODES = 20_000
"""Values in a schema, or in all tools of a request together."""
MAX_CHARACTERS = 512 * 1024
"""Characters of the strings in a schema, or in all tools together."""
MAX_PATTERN = 2048
"""Characters of a regular expression."""
MAX_PATTERNS = 64 * 1024
"""Characters of all regular expressions of a request; the event loop parses them."""
MAX_GRAMMAR = 32 * 1024
"""Characters of a grammar."""
MAX_PARTS = 512
"""Characters and classes of a grammar that no operator has allowed, with its rules and repetitions written out: as many
ways to go on can be open at a token."""
MAX_GROUPS = 32
"""Nesting depth of groups."""
MAX_REPETITIONS = 2000
"""Product of nested repetitions in a regular expression or a grammar."""
MAX_NESTED = {2: 1000, 3: 343}
"""The product where so many of them are bounded (`{0,9}`); the last is of more, too. An engine writes these out, and if
they can match the same text in several ways, it follows each of them at each token."""
MAX_OPTIONAL = 64
"""Optional parts of a regular expression or a grammar rule: `?`, `*`, `{0,9}`."""
MAX_OPTIONAL_PROPERTIES = 512
"""Optional properties of one object."""
MAX_ALTERNATIVES = 4096
"""Values of `enum` and members of `anyOf` and `oneOf`, in all schemas of a request."""
MAX_ITEMS = 100_000
"""Product of nested `minItems` or `maxItems`, and the largest value of any bound in a schema."""
MAX_CHOICES = 4096
UNBOUNDED = 16
_MAX_RULES = 256

_BOUNDS = frozenset(
    {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains"}
)
_VALUES = frozenset({"enum", "const", "default", "example", "examples", "title", "description", "required"})
_NAMED = frozenset({"properties", "$defs", "definitions", "dependentSchemas", "patternProperties"})


class TooCostly(BadRequest):
    """A valid constraint that costs an engine too much; a tool stays usable without it."""


class Measure:
    """Totals of all schemas of a request, so that many small ones cannot exceed the bounds."""

    def __init__(self) -> None:
        self._nodes, self._characters, self._alternatives = 0, 0, 0
        self._pattern_characters, self._repetitions = 0, 0

    def schema(self, schema: Any, at: str) -> None:
        """Measure a schema. Raises BadRequest with the bound it exceeds; TooCostly if a looser schema would pass."""
        costly: list[TooCostly] = []
        # (node, depth, items, named); named: the object's keys are the client's names, not JSON Schema keywords
        stack: list[tuple[Any, int, int, bool]] = [(schema, 1, 1, False)]
        while stack:
            node, depth, items, named = stack.pop()
            if depth > MAX_DEPTH:
                raise BadRequest(f"the schema is nested more than {MAX_DEPTH} levels deep", at)
            self._nodes += len(node) + 1
            if self._nodes > MAX_NODES:
                raise BadRequest(f"the schemas of a request hold more than {MAX_NODES} values", at)
            if type(node) is dict and not named:
                items = self._words(node, items, at, costly)
            for key, value in node.items() if type(node) is dict else enumerate(node):
                kind = type(value)
                if kind is str:
                    self._characters += len(value)
                elif kind is dict or kind is list:
                    stack.append((value, depth + 1, items, not named and (key in _NAMED or key in _VALUES)))
            if self._characters > MAX_CHARACTERS:
                raise BadRequest(f"the schemas of a request hold more than {MAX_CHARACTERS} characters", at)
        if costly:
            raise costly[0]

    def _words(self, node: dict[str, Any], items: int, at: str, costly: list[TooCostly]) -> int:
        """Measure the keywords of one schema. Return how often the values inside it may repeat."""
        self._choices(node, at)
        try:
            if "pattern" in node and isinstance(node["pattern"], str):
                self._pattern(node["pattern"], f"{at}: pattern")
            if "patternProperties" in node and isinstance(node["patternProperties"], dict):
                for key in node["patternProperties"]:
                    self._pattern(key, f"{at}: patternProperties")
            if "$ref" in node and isinstance(node["$ref"], str) and not node["$ref"].startswith("#"):
                raise TooCostly("a $ref must point into its own schema: '#/…'", at)
            most = 1
            for word in _BOUNDS & node.keys():
                value = node[word]
                if isinstance(value, (int, float)) and value > MAX_ITEMS:
                    raise TooCostly(f"{word} is more than {MAX_ITEMS}", at)
                if word in ("minItems", "maxItems") and isinstance(value, (int, float)):
                    most = max(most, int(value))
            if items * most > MAX_ITEMS:
                raise TooCostly(f"nested minItems and maxItems multiply to more than {MAX_ITEMS}", at)
        except TooCostly as error:
            costly.append(error)
            return items
        return items * most

    def _choices(self, node: dict[str, Any], at: str) -> None:
        """Count alternatives and optional properties. Raises BadRequest: loosening does not reduce them."""
        for word in ("enum", "anyOf", "oneOf"):
            members = node.get(word)
            if isinstance(members, list):
                self._alternatives += len(members)
        if self._alternatives > MAX_ALTERNATIVES:
            raise BadRequest(
                f"the schemas of a request hold more than {MAX_ALTERNATIVES} values of enum and members of anyOf", at
            )
        properties, required = node.get("properties"), node.get("required")
        if isinstance(properties, dict) and len(properties) > MAX_OPTIONAL_PROPERTIES:
            mandatory = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
            if len(properties.keys() - mandatory) > MAX_OPTIONAL_PROPERTIES:
                raise BadRequest(f"an object has more than {MAX_OPTIONAL_PROPERTIES} optional properties", at)

    def _pattern(self, text: str, at: str) -> None:
        self._pattern_characters += len(text)
        if self._pattern_characters > MAX_PATTERNS:
            raise TooCostly(f"the patterns of a request hold more than {MAX_PATTERNS} characters", at)
        self._repetitions += pattern(text, at)
        if self._repetitions > MAX_REPETITIONS * UNBOUNDED:
            raise TooCostly(
                f"the patterns of a request add up to more than {MAX_REPETITIONS * UNBOUNDED} repetitions", at
            )


_REGEX = re.compile(r"\\.|\[\^?\]?(?:[^\]\\]|\\.)*+\]|\{\d*,?\d*\}|\(\?(?:[:=!>]|<[=!]|P?<\w*>)|[()*+?|]|.", re.DOTALL)
_GBNF = re.compile(
    # Quoted strings are bounded, so an unclosed quote cannot make the scan quadratic.
    r'#[^\r\n]*|"(?:[^"\\]|\\.){0,256}+"|/(?:[^/\\\n]|\\.){1,256}+/|\[(?:[^\]\\]|\\.){0,128}+\]'
    r"|\{[\d\s]{0,9},?[\d\s]{0,9}\}"
    r"|[A-Za-z_][\w-]*\s*(?:::=|:(?!:))|[A-Za-z_][\w-]*|[()*+?|]|\S",
    re.DOTALL,
)


def pattern(text: str, at: str) -> int:
    """Measure a regular expression. Return the sum of its repetitions. Raises TooCostly."""
    if len(text) > MAX_PATTERN:
        raise TooCostly(f"the pattern is longer than {MAX_PATTERN} characters", at)
    reader = _Repetitions(at)
    reader.read(_REGEX.findall(text))
    return reader.total


def grammar(text: str, at: str) -> None:
    """Measure a grammar, in GBNF or EBNF. Raises BadRequest."""
    rules = _rules(text, at)
    costs: dict[str, int] = {}
    for name in rules:
        _cost(name, rules, costs, at, 0)


def plain_grammar(text: str, at: str) -> None:
    """Measure a grammar in GBNF that says no more than a pattern can, with the bounds of one.

    Others need an operator: with recursion, few characters are as ambiguous as they like. Raises BadRequest.
    """
    grammar(text, at)
    rules = _rules(text, at)
    for word in rules.pop(""):
        raise BadRequest(f"expected a rule, such as 'root ::= ...', not {word[:64]!r}", at)
    for word in (word for body in rules.values() for word in body):
        if _PLAIN.fullmatch(word) is None:
            raise BadRequest(f"unexpected {word[:64]!r} in a grammar of GBNF", at)
    used = {"root"}
    words = [*_inline("root", rules, used, at)]
    if unused := rules.keys() ^ used:
        raise BadRequest(f"the grammar's rule {min(unused)[:64]!r} is missing or not used by 'root'", at)
    _Repetitions(at).read(words)
    if _size(words) > MAX_PARTS:
        raise _too_large(at)


_PLAIN = re.compile(r'".*"|\[.*\]|\{.+\}|[A-Za-z][A-Za-z0-9-]*|[()*+?|.]', re.DOTALL)
"""Tokens that GBNF has, closed and in full."""
_ALLOW = "; an operator can allow it for a function (allow = [...])"


def _inline(root: str, rules: dict[str, list[str]], used: set[str], at: str) -> Iterator[str]:
    """Yield the tokens of a rule, with each rule that it refers to in a group; add these to `used`. Raises BadRequest
    for recursion and too many tokens."""
    stack = [(root, iter(rules.get(root, ())))]
    size = 0
    while stack:
        word = next(stack[-1][1], None)
        if word is None:
            stack.pop()
            yield ")"
            continue
        size += max(1, len(word) - 2) if word[0] == '"' else 1
        if size > MAX_PARTS:
            raise _too_large(at)
        if word not in rules:
            if word[0].isalpha():
                used.add(word)  # a rule that is missing
            yield word
        elif any(word == name for name, _ in stack):
            raise BadRequest(f"a grammar with recursion ({word!r}) is not accepted" + _ALLOW, at, Kind.UNSUPPORTED)
        else:
            used.add(word)
            stack.append((word, iter(rules[word])))
            yield "("


def _too_large(at: str) -> BadRequest:
    return BadRequest(
        f"a grammar with more than {MAX_PARTS} characters and classes, repetitions written out, is not accepted"
        + _ALLOW,
        at,
        Kind.UNSUPPORTED,
    )


def _size(words: Iterable[str]) -> int:
    """Return the number of characters and classes, with each repetition written out; `*` and `+` add none."""
    groups, part = [0], 0
    for word in words:
        if word == "(":
            groups.append(0)
            part = 0
        elif word == ")" and len(groups) > 1:
            part = groups.pop()
            groups[-1] += part
        elif _times(word) is None:
            part = max(1, len(word) - 2) if word[0] == '"' else 0 if word in ("|", ")") else 1
            groups[-1] += part
        elif word[0] == "{":
            repeated = part * (_times(word) or 1)
            groups[-1] += repeated - part
            part = repeated
    return sum(groups)


def _rules(text: str, at: str) -> dict[str, list[str]]:
    """Return the tokens of each rule by its name; what precedes the first rule is of the rule ''."""
    if len(text) > MAX_GRAMMAR:
        raise BadRequest(f"the grammar is longer than {MAX_GRAMMAR} characters", at)
    body: list[str] = []
    rules = {"": body}
    for token in _GBNF.findall(text):
        if token[0] == "#":
            continue
        if token[-1] == "=" or (token[-1] == ":" and len(token) > 1):
            body = rules.setdefault(token.rstrip(":= \t\r\n"), [])
        else:
            body.append(token)
    return rules


def _cost(name: str, rules: dict[str, list[str]], costs: dict[str, int], at: str, depth: int) -> int:
    """Return the product of repetitions in a rule and the rules it references. A recursive reference counts once."""
    if name in costs or name not in rules:
        return costs.get(name, 1)
    if depth > _MAX_RULES:
        raise BadRequest(f"the grammar's rules reference one another more than {_MAX_RULES} deep", at)
    costs[name] = 1
    reader = _Repetitions(at)
    costs[name] = reader.read(
        rules[name], lambda word: _cost(word, rules, costs, at, depth + 1) if word in rules else 1
    )
    return costs[name]


class _Group:
    """A group during parsing: its largest product, the most bounded repetitions inside one another, and whether it can
    match the empty string."""

    def __init__(self) -> None:
        self.product, self.levels = 1, 0
        self.can_be_empty, self._sequence_can_be_empty = False, True

    def follow(self, can_be_empty: bool) -> None:
        """Append a part to the current alternative."""
        self._sequence_can_be_empty &= can_be_empty

    def end_alternative(self) -> None:
        """End the current alternative."""
        self.can_be_empty |= self._sequence_can_be_empty
        self._sequence_can_be_empty = True


class _Repetitions:
    """Parses an expression's tokens: groups and their quantifiers."""

    def __init__(self, at: str) -> None:
        self._at = at
        self.total = self._optional = 0

    def read(self, words: Iterable[str], refer: Any = None) -> int:
        """Return the largest product of repetitions. `refer` returns a rule's product by name. Raises TooCostly."""
        groups, atom, levels, can_be_empty = [_Group()], 1, 0, True
        for word in words:
            group, times = groups[-1], _times(word)
            if times is not None:
                levels += times > 1 and word[0] == "{"
                self._repeat(word, times, atom * times, levels, can_be_empty)
                atom *= times
                group.levels = max(group.levels, levels)
                can_be_empty |= _is_optional(word)
                group.product = max(group.product, atom)
                continue
            group.follow(can_be_empty)
            can_be_empty = word in _EMPTY
            atom, levels = 1, 0
            if word[0] == "(":
                groups.append(_Group())
                can_be_empty = True
                if len(groups) > MAX_GROUPS:
                    raise TooCostly(f"groups are nested more than {MAX_GROUPS} deep", self._at)
            elif word == ")":
                group.end_alternative()
                if len(groups) > 1:
                    groups.pop()
                    atom, levels, can_be_empty = group.product, group.levels, group.can_be_empty
            elif word == "|":
                group.end_alternative()
                can_be_empty = True
            elif refer is not None:
                atom = refer(word)
            groups[-1].product = max(groups[-1].product, atom)
            groups[-1].levels = max(groups[-1].levels, levels)
        return max(group.product for group in groups)

    def _repeat(self, word: str, times: int, product: int, levels: int, can_be_empty: bool) -> None:
        """Count one repetition. Raises TooCostly."""
        self.total += times
        most = MAX_NESTED.get(min(levels, max(MAX_NESTED)), MAX_REPETITIONS)
        if product > most or self.total > MAX_REPETITIONS * UNBOUNDED:
            raise TooCostly(f"nested repetitions multiply to more than {most}", self._at)
        if times > 1 and can_be_empty:
            raise TooCostly("a repetition repeats an expression that can be empty", self._at)
        self._optional += _is_optional(word)
        if self._optional > MAX_OPTIONAL:
            raise TooCostly(f"more than {MAX_OPTIONAL} parts are optional", self._at)


_EMPTY = frozenset({"^", "$", r"\b", r"\B", r"\A", r"\Z", '""'})
"""Tokens that match the empty string."""


def _is_optional(word: str) -> bool:
    return word in ("*", "?") or (word[0] == "{" and not word[1:-1].partition(",")[0].strip(" 0"))


def _times(word: str) -> int | None:
    """Return how often a quantifier repeats its operand; None if the token is not a quantifier."""
    if word == "*" or word == "+":
        return UNBOUNDED
    if word == "?":
        return 1
    if len(word) < 3 or word[0] != "{" or word[-1] != "}":
        return None
    least, comma, most = word[1:-1].partition(",")
    least, most = least.strip(), most.strip()
    if len(least) > 7 or len(most) > 7:
        return MAX_REPETITIONS + 1
    if not comma:
        return max(1, int(least)) if least else None
    return max(1, int(most)) if most else max(UNBOUNDED, int(least or 0))


def choices(value: Any, at: str) -> None:
    """Measure a list of answers to choose from. Raises BadRequest."""
    if not isinstance(value, list) or len(value) > MAX_CHOICES:
        raise BadRequest(f"expected a list of at most {MAX_CHOICES} strings", at)


def json_value(value: Any, at: str) -> Any:
    """Return a schema; it may be JSON in a string."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except msgspec.DecodeError:
        raise BadRequest("expected a JSON schema", at) from None
