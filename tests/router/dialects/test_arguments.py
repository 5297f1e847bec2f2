"""Arguments of calls: at every moment the beginning of valid JSON, whatever the model writes."""

import itertools
import json
from typing import Any

import jiter
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.router.dialects.core.arguments import MAX_DEPTH, Arguments
from tests.router.dialects.examples import examples

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=4)


def fed(pieces: list[str]) -> tuple[str, Arguments]:
    arguments = Arguments()
    return "".join([arguments.feed(piece) for piece in pieces]), arguments


def split(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


@examples(50)
@given(OBJECTS, st.booleans(), st.sampled_from([None, 1]), st.lists(st.integers(0, 500), max_size=6))
def test_valid_arguments_pass_unchanged_in_any_pieces(
    value: Any, is_ascii: bool, indent: int | None, places: list[int]
) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent)

    out, arguments = fed(split(text, places))

    assert out == text
    assert arguments.complete
    assert json.loads(arguments.json()) == value


@examples(50)
@given(
    st.lists(
        st.sampled_from(
            [
                '{"a":',
                '"',
                "\\",
                "\\u",
                "d83d",
                "\n",
                "1",
                ".5",
                "e",
                "tru",
                "e",
                "}",
                "[",
                "]",
                ",",
                ":",
                "{",
                " ",
                "null",
                "é",
                "\\ud83d",
            ]
        ),
        max_size=25,
    )
)
def test_the_output_is_parseable_after_every_piece(pieces: list[str]) -> None:
    arguments = Arguments()
    out = ""
    for piece in pieces:
        out += arguments.feed(piece)
        if out:
            jiter.from_json(out.encode(), partial_mode=True)

    streamed = jiter.from_json(out.encode(), partial_mode=True) if out else {}
    assert json.loads(arguments.json()) == streamed
    assert fed(["".join(pieces)])[1].json() == arguments.json()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": "x', {}),
        ('{"a": 12', {}),
        ('{"a": 12, "b', {"a": 12}),
        ('{"a": [1, {"b": true}, "c', {"a": [1, {"b": True}]}),
        ('{"a": {', {"a": {}}),
        ("{", {}),
        ("", {}),
    ],
)
def test_truncated_arguments_keep_their_complete_members(text: str, expected: Any) -> None:
    arguments = fed([text])[1]

    assert json.loads(arguments.json()) == expected
    assert not (arguments.complete or arguments.broken)
    assert arguments.truncated is bool(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": "1\n2\t3\x01"}', {"a": "1\n2\t3\x01"}),
        ('{"a": "\\d\\w C:\\dir"}', {"a": "\\d\\w C:\\dir"}),
        ('{"a": "\\ud83d!"}', {"a": "\ufffd!"}),
        ('{"a": "\\udc00"}', {"a": "\ufffd"}),
        ('{"a": "\\ud83d\\ude00"}', {"a": "😀"}),
        ('{"a": "\\ud83d\\n"}', {"a": "\ufffd\n"}),
    ],
)
def test_errors_inside_a_string_are_repaired(text: str, expected: Any) -> None:
    for pieces in ([text], list(text)):
        out, arguments = fed(pieces)

        assert arguments.complete
        assert json.loads(out) == json.loads(arguments.json()) == expected


@pytest.mark.parametrize(
    "text",
    ["[1]", '"{}"', "nonsense", "{'a': 1}", '{"a" 1}', '{"a": 01,', '{"a": [1,]', '{"a": 1,}', '{"a": }', "nul}"],
)
def test_other_errors_break_the_arguments(text: str) -> None:
    for pieces in ([text], list(text)):
        out, arguments = fed([*pieces, " more"])

        assert arguments.broken
        assert not arguments.intact
        assert not out.endswith("more")


def test_no_arguments_give_an_empty_object() -> None:
    for pieces in ([], [""], [" "], ["null"], ["nu", "ll"]):
        out, arguments = fed(pieces)

        assert (out, arguments.json(), arguments.intact) == ("", b"{}", True)


def test_text_after_complete_arguments_is_ignored() -> None:
    assert fed(['{"a":1}{"a":2}'])[0] == '{"a":1}'


def test_arguments_beyond_the_depth_limit_are_broken() -> None:
    assert fed(['{"a":' * MAX_DEPTH])[1].broken is False
    assert fed(['{"a":' * (MAX_DEPTH + 1)])[1].broken
