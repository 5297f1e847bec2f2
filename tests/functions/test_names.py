"""Names people write: which are refused, which are guessed, and how they become file names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.support  # noqa: F401
from cortex.functions.names import LONGEST, did_you_mean, fault_in, nearest, slug

KNOWN = ("Qwen/Qwen3-8B", "Qwen/Qwen3-32B", "meta-llama/Llama-3.1-8B", "cortex/demo")


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "demo", "a b", "größe", "v1..2", "x" * LONGEST])
def test_an_ordinary_name_has_no_fault(name: str) -> None:
    assert fault_in(name) is None


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "is empty"),
        ("x" * (LONGEST + 1), "is longer than 200 characters"),
        ("a\nb", "has a control character in it"),
        ("a\x00", "has a control character in it"),
        ("a\x1b[31m", "has a control character in it"),
        ("a\x85b", "has a control character in it"),
        ("a\u2028b", "has a control character in it"),
        (" a", "begins or ends with a space"),
        ("a\u00a0", "begins or ends with a space"),
        ("..", "has '..' as a path segment"),
        ("org/../etc", "has '..' as a path segment"),
    ],
)
def test_a_name_that_could_do_harm_is_refused(name: str, fault: str) -> None:
    assert fault_in(name) == fault


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Qwen/Qwen3-8b", "Qwen/Qwen3-8B"),
        ("qwen/qwen3-32b", "Qwen/Qwen3-32B"),
        ("qwen3-8b", "Qwen/Qwen3-8B"),
        ("someone/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("cortex/dmeo", "cortex/demo"),
    ],
)
def test_the_nearest_name_is_the_one_that_was_meant(written: str, meant: str) -> None:
    assert nearest(written, KNOWN)[0] == meant


def test_nothing_near_is_said_by_an_empty_list() -> None:
    assert nearest("zzzzzz", KNOWN) == []


def test_no_more_names_are_offered_than_asked_for() -> None:
    assert len(nearest("Qwen/Qwen3-8B", KNOWN, most=1)) == 1


def test_an_endless_name_is_compared_with_nothing() -> None:
    assert nearest("Qwen/Qwen3-8B" * 1000, KNOWN) == []


def test_a_hint_is_a_question_and_no_hint_is_empty() -> None:
    assert did_you_mean("idle_after", ("idle_after_s", "queue")) == "; did you mean 'idle_after_s'?"
    assert did_you_mean("zzz", ("idle_after_s", "queue")) == ""


def test_with_no_cutoff_there_always_is_a_nearest() -> None:
    assert did_you_mean("zzz", ("idle_after_s",), cutoff=0) == "; did you mean 'idle_after_s'?"
    assert did_you_mean("zzz", (), cutoff=0) == ""


@given(st.text(max_size=300), st.lists(st.text(max_size=30), max_size=8))
def test_what_is_offered_is_known(name: str, known: list[str]) -> None:
    assert set(nearest(name, known, cutoff=0)) <= set(known)


def test_a_tame_name_is_its_own_slug() -> None:
    assert slug("Qwen3-8B.Q4_K_M") == "Qwen3-8B.Q4_K_M"


@given(st.text(max_size=120))
def test_a_slug_is_one_safe_path_segment(name: str) -> None:
    segment = slug(name)

    assert segment.isascii()
    assert 0 < len(segment) <= 100
    assert not set(segment) & set("/\\ \0\n:*?")
    assert segment.strip(".") == segment


@pytest.mark.parametrize(("one", "other"), [("a/b", "a-b"), ("a/b", "a b"), ("..", "..."), ("é", "è")])
def test_two_names_never_share_a_slug(one: str, other: str) -> None:
    assert slug(one) != slug(other)
