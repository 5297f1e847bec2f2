"""Values that are computed once."""

import pytest

from cortex.functions import memo
from cortex.functions.memo import Memo, NamedMemo
from tests.support.factories import a_function


def test_the_value_of_a_function_is_computed_once_for_each_object() -> None:
    calls = []
    of = Memo(lambda function: calls.append(function.id))
    one, same = a_function("f"), a_function("f")

    for function in (one, one, same, one):
        of(function)

    assert calls == ["f", "f"]


def test_a_value_is_computed_anew_when_an_input_differs_from_the_last_call() -> None:
    calls: list[tuple[object, ...]] = []
    of = NamedMemo(lambda *inputs: calls.append(inputs) or len(calls))  # type: ignore[func-returns-value]

    results = [of("a", 1, ("x",)), of("a", 1, ("x",)), of("b", 1, ("x",)), of("a", 1, ("y",)), of("a", 1, ("x",))]

    assert results == [1, 1, 2, 3, 4]
    assert calls == [("a", 1, ("x",)), ("b", 1, ("x",)), ("a", 1, ("y",)), ("a", 1, ("x",))]


def test_the_values_that_a_memo_holds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "MOST_KNOWN", 3)
    of = NamedMemo(lambda name: name)

    for n in range(10):
        of(str(n))
        of("0")

    assert len(of._known) <= 3
