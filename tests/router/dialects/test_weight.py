"""Counting a body before objects are made of it: large ones that people send pass, hostile ones do not."""

import itertools
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.router.dialects.core import sizes, wire
from cortex.router.dialects.core.errors import BadRequest, Dialect
from cortex.router.dialects.core.long_strings import Outline
from cortex.router.dialects.core.sizes import check_size
from cortex.router.dialects.core.traits import Traits
from cortex.router.dialects.dialect import read_request

MIB = 1 << 20


def body(text: bytes) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":"' + text + b'"}]}'


@pytest.mark.parametrize(
    "text",
    [
        lambda: b"a" * (20 * MIB),
        lambda: b"{[,]}" * MIB,
        lambda: b'{\\"a\\": [1, 2]}, ' * (MIB // 4),
        lambda: "zwölf Boxkämpfer jagen Viktor ".encode() * (MIB // 8),
    ],
    ids=["an image", "brackets in a text", "JSON in a text", "a text of 4 MiB"],
)
def test_common_bodies_pass(text: Callable[[], bytes]) -> None:
    check_size(body(text()))


@pytest.mark.parametrize(
    ("large", "what"),
    [
        (lambda: b"[" + b",".join([b"{}"] * MIB) + b"]", "objects and lists"),
        (lambda: b"[" + b",".join([b"[]"] * MIB) + b"]", "objects and lists"),
        (lambda: b"[" * MIB, "objects and lists"),
        (lambda: b"[" + b",".join([b"1"] * 2 * MIB) + b"]", "values"),
        (lambda: b"[" + b",".join([b'""'] * 2 * MIB) + b"]", "values"),
        (lambda: body(b"\\n" * (5 * MIB)), "MiB of text"),
        (lambda: body(b'\\"' * (9 * MIB)), "MiB of text"),
        (lambda: body("字".encode() * (3 * MIB)), "MiB of text"),
        (lambda: body(b"a" * (33 * MIB)), "longer than 32 MiB"),
        (lambda: b'"' + b"[" * MIB + b'"' + b"[" * MIB, "objects and lists"),
    ],
    ids=itertools.count(),
)
def test_a_body_beyond_the_bounds_is_refused(large: Callable[[], bytes], what: str) -> None:
    raw = large()

    with pytest.raises(BadRequest, match=what):
        check_size(raw)


TEXTS = st.text(alphabet='a\\"{[,]} é', max_size=30)


@given(st.recursive(TEXTS | st.integers(), lambda inner: st.lists(inner, max_size=4), max_leaves=30))
def test_only_structure_outside_of_strings_counts(value: object) -> None:
    def containers(one: object) -> int:
        return 1 + sum(map(containers, one)) if isinstance(one, list) else 0

    count = containers(value)
    raw = json.dumps(value, ensure_ascii=False).encode()
    allowed = sizes.Bounds(containers=count)

    sizes.count_exactly(raw, allowed)
    if count:
        with pytest.raises(BadRequest):
            sizes.count_exactly(raw, sizes.Bounds(containers=count - 1))


CONTENT = '"messages":[{"role":"user","content":"%s"}]'


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        ("chat", CONTENT),
        ("completions", '"prompt":"%s"'),
        ("messages", '"max_tokens":9,' + CONTENT),
        ("responses", '"input":"%s"'),
    ],
)
def test_a_large_body_is_taken_apart_once(dialect: Dialect, fields: str, monkeypatch: pytest.MonkeyPatch) -> None:
    large = ('{"model":"m",' + fields % ("a" * 2 * MIB) + "}").encode()
    whole: list[int] = []

    class Counted(Outline):
        def __init__(self, json: bytes | memoryview) -> None:
            whole.append(len(json))
            super().__init__(json)

    monkeypatch.setattr(wire, "Outline", Counted)

    parsed = read_request(dialect, large, Traits())

    assert (parsed.model, whole) == ("m", [len(large)])
