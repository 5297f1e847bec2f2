"""Names of functions: validity, similar names, and slugs."""

import difflib
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.support  # noqa: F401
from cortex.functions.names import LONGEST, MOST_COMPARED, did_you_mean, fault_in, join_names, nearest, slug

EMPTY_SEGMENT = "begins or ends with '/', or has '//' in it; a path of weights belongs into `source`"
CANDIDATES = ("Qwen/Qwen3-8B", "Qwen/Qwen3-32B", "meta-llama/Llama-3.1-8B", "cortex/demo")


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "demo", "a b", "größe", "v1..2", "x" * LONGEST])
def test_a_valid_name_has_no_fault(name: str) -> None:
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
        ("./demo", "has '.' as a path segment"),
        ("/demo", EMPTY_SEGMENT),
        ("demo/", EMPTY_SEGMENT),
        ("org//demo", EMPTY_SEGMENT),
        ("/", EMPTY_SEGMENT),
    ],
)
def test_an_unsafe_name_has_a_fault(name: str, fault: str) -> None:
    assert fault_in(name) == fault


@pytest.mark.parametrize(
    ("name_typed", "expected"),
    [
        ("Qwen/Qwen3-8b", "Qwen/Qwen3-8B"),
        ("qwen/qwen3-32b", "Qwen/Qwen3-32B"),
        ("qwen3-8b", "Qwen/Qwen3-8B"),
        ("someone/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("cortex/dmeo", "cortex/demo"),
    ],
)
def test_the_nearest_name_comes_first(name_typed: str, expected: str) -> None:
    assert nearest(name_typed, CANDIDATES)[0] == expected


def test_without_a_similar_name_the_list_is_empty() -> None:
    assert nearest("zzzzzz", CANDIDATES) == []


def test_at_most_the_requested_number_of_names_is_returned() -> None:
    assert len(nearest("Qwen/Qwen3-8B", CANDIDATES, most=1)) == 1


def test_a_name_beyond_the_limit_has_no_similar_ones() -> None:
    assert nearest("Qwen/Qwen3-8B" * 1000, CANDIDATES) == []


def test_of_thousands_of_names_few_are_compared_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    compare = difflib.get_close_matches

    def counted(word: str, names: Collection[str], n: int, cutoff: float) -> list[str]:
        compared.append(len(names))
        return compare(word, names, n, cutoff)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    thousands = [f"org/model-{n}-{n % 70}B" for n in range(5000)]

    assert nearest("org/modle-4321-51B", thousands)[0] == "org/model-4321-51B"
    assert nearest("model-77-7B-chat", thousands)[0] == "org/model-77-7B"
    assert nearest("quite another", thousands) == []
    assert max(compared) == MOST_COMPARED


def test_a_hint_is_a_question_or_empty() -> None:
    assert did_you_mean("idle_after", ("idle_after_s", "queue")) == "; did you mean 'idle_after_s'?"
    assert did_you_mean("zzz", ("idle_after_s", "queue")) == ""


def test_without_a_cutoff_the_nearest_name_is_returned() -> None:
    assert did_you_mean("zzz", ("idle_after_s",), cutoff=0) == "; did you mean 'idle_after_s'?"
    assert did_you_mean("zzz", (), cutoff=0) == ""


@given(st.text(max_size=300), st.lists(st.text(max_size=30), max_size=8))
def test_only_candidates_are_returned(name: str, candidates: list[str]) -> None:
    assert set(nearest(name, candidates, cutoff=0)) <= set(candidates)


def test_a_safe_name_is_its_own_slug() -> None:
    assert slug("Qwen3-8B.Q4_K_M") == "Qwen3-8B.Q4_K_M"


@given(st.text(max_size=120))
def test_a_slug_is_one_safe_path_segment(name: str) -> None:
    segment = slug(name)

    assert segment.isascii()
    assert 0 < len(segment) <= 100
    assert not set(segment) & set("/\\ \0\n:*?")
    assert segment.strip(".") == segment


@pytest.mark.parametrize(("first", "second"), [("a/b", "a-b"), ("a/b", "a b"), ("..", "..."), ("é", "è")])
def test_different_names_have_different_slugs(first: str, second: str) -> None:
    assert slug(first) != slug(second)


@pytest.mark.parametrize(
    ("names", "text"), [((), ""), (("a",), "a"), (("a", "b"), "a and b"), (("a", "b", "c"), "a, b and c")]
)
def test_several_names_read_as_a_list(names: tuple[str, ...], text: str) -> None:
    assert join_names(names) == text
