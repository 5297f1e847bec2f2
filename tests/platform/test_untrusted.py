"""Text and numbers from outside are fit for the record afterwards, whatever they were before."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cortex.platform import model_list, served_model, untrusted
from cortex.platform.record import FailureKind, HostRecord
from cortex.platform.scheduling.failures import Failures, Incident, evidence_in
from cortex.platform.workers import log_files
from tests.support.factories import a_host, an_instance

CHARACTERS = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)
"""Text with control characters and halves of characters in it."""
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | CHARACTERS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "max_model_len", "meta", "n_ctx", "architecture"]), inner)
    ),
    max_leaves=8,
)
MODEL_LISTS = st.builds(lambda data: json.dumps({"data": data}).encode(), st.lists(JSON, max_size=4)) | st.binary()


@given(CHARACTERS, st.integers(1, 50), st.sampled_from([untrusted.text, untrusted.line, untrusted.name]))
def test_any_text_is_encodable_and_bounded_afterwards(
    value: str, longest: int, clean: Callable[[object, int], str]
) -> None:
    cleaned = clean(value, longest)

    assert len(cleaned) <= longest
    assert msgspec.json.decode(msgspec.json.encode(cleaned)) == cleaned
    assert not any(ord(c) < 32 and c not in "\n\t" for c in cleaned)
    assert clean(cleaned, longest) == cleaned


@given(CHARACTERS)
def test_a_name_that_is_changed_equals_no_name_that_is_fit(value: str) -> None:
    cleaned = untrusted.name(value, 40)

    assert cleaned == value or untrusted.REPLACEMENT in cleaned or cleaned.endswith(untrusted.CUT)


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("\x1b[31mERROR\x1b[0m it failed", "ERROR it failed"),
        ("\x1b]0;a title\x07it failed", "it failed"),
        ("  File \"x.py\", line 1", "  File \"x.py\", line 1"),
        ("a\tb", "a   b"),
        ("a\0b\ud800c", "a\ufffdb\ufffdc"),
        ("x" * 500, "x" * 399 + "…"),
    ],
    ids=["colours", "title", "indented", "tab", "unfit", "long"],
)  # fmt: skip
def test_a_line_of_a_log_is_shown_without_what_is_meant_for_a_terminal(written: str, line: str) -> None:
    assert untrusted.line(written, 400) == line


@pytest.mark.parametrize("value", [0, -1, 1 << 40, True, 4096.0, float("nan"), "4096", None, [4096]])
def test_what_is_no_positive_number_in_range_is_zero(value: object) -> None:
    assert untrusted.positive(value, 1 << 30) == 0


@given(MODEL_LISTS, st.binary(max_size=300), st.sampled_from(list(FailureKind)))
def test_whatever_a_worker_answers_and_writes_the_record_of_its_host_can_be_read_again(
    tmp_path_factory: pytest.TempPathFactory, models: bytes, log: bytes, kind: FailureKind
) -> None:
    path = tmp_path_factory.getbasetemp() / "worker.log"
    path.write_bytes(log)
    instance = an_instance()
    failures = Failures()

    try:
        cards = served_model.read(models)
    except ValueError:
        cards = {}
    incident = Incident(f"the worker serves {', '.join(cards)}", kind, evidence_in(log_files.tail(path)))
    failures.add(instance, incident, now=1.0)
    instances = [replace(instance, context=c.context, vision=c.vision, phase=n) for n, c in cards.items()]
    record = replace(a_host(*instances), failures=failures.all())

    assert msgspec.json.decode(msgspec.json.encode(record), type=HostRecord) == record


def test_a_reason_beyond_its_bound_is_cut_and_lines_are_only_counted() -> None:
    incident = Incident("why " * 10_000, evidence=evidence_in(["line " * 1000] * 100))

    failure = Failures().add(an_instance(), incident, 1.0)

    assert (len(failure.reason), failure.lines) == (1000, 20)


def test_a_list_of_models_is_bounded_in_number_and_in_length_of_names() -> None:
    entries = [{"id": f"{n}-" + "x" * 10_000} for n in range(20)] + [{"id": str(n)} for n in range(2000)]

    models = model_list.read(json.dumps({"data": entries}).encode())

    assert len(models) == model_list.MOST_MODELS
    assert max(map(len, models)) == 201


def test_a_name_longer_than_an_id_is_never_taken_for_one() -> None:
    function = "f" * 200

    assert function not in model_list.read(json.dumps({"data": [{"id": function + "x"}]}).encode())


@pytest.mark.parametrize("body", [b"[" * 100_000, b"\xff\xfe", b"", b"9" * 10_000, b"<html>"])
def test_what_is_no_list_of_models_is_a_value_error_or_empty(body: bytes) -> None:
    try:
        models = model_list.read(body)
    except ValueError:
        models = {}

    assert models == {}


def test_the_last_lines_of_a_log_are_clean_and_bounded(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_bytes(b"old\n" * 10_000 + b"\x1b[31mred\x1b[0m\n\xff\xfe\0\n" + b"y" * 5000 + b"\n\n  \n")

    *_, red, odd, long = log_files.tail(log)

    assert red == "red"
    assert odd == "\ufffd" * 3
    assert len(long) == log_files.LINE_LENGTH
    assert len(log_files.tail(log)) == 20
