"""The judgement of a conformance run."""

import pytest

from tests.conformance.exceptions import EXCEPTIONS, Exempt, Result, verdicts

LISTED = Exempt(format="f", functions=("a",), cases=("one",), errors="no key", why="the engine sends none")


def a_result(case: str, *errors: str, function: str = "a", passed: bool = False) -> Result:
    return Result(format="f", function=function, case=case, passed=passed, errors=errors)


def test_a_listed_case_that_fails_as_listed_is_right() -> None:
    assert [*verdicts([a_result("one", "there is no key")], [LISTED])] == []


def test_a_case_that_passes_and_is_not_listed_is_right() -> None:
    assert [*verdicts([a_result("two", passed=True)], [LISTED])] == []


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (a_result("two", "there is no key"), "f: a: two: there is no key"),
        (a_result("one", "there is no key", function="b"), "f: b: one: there is no key"),
        (a_result("one", "no key", "HTTP 500"), "f: a: one: HTTP 500"),
        (a_result("one", passed=True), "f: a: one: it passes, but is listed as failing: the engine sends none"),
    ],
)
def test_everything_else_is_wrong(result: Result, expected: str) -> None:
    assert [*verdicts([result], [LISTED])] == [expected]


def test_no_case_is_listed_twice() -> None:
    listed = [(e.format, function, case) for e in EXCEPTIONS for function in e.functions for case in e.cases]

    assert len(listed) == len(set(listed))
