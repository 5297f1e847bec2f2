"""Whether a saved conversation is used."""

import pytest
from msgspec.structs import replace

from cortex.platform.contexts.contexts import build_of
from cortex.platform.contexts.fit import (
    MIB,
    Rates,
    Unused,
    WorkerFacts,
    is_slow,
    settings_digest,
    to_remove,
    why_unused,
)
from tests.support.factories import a_saved_context

WORKER = WorkerFacts(function="org/model", revision="r1", build="llama-server b1", model="m1", settings="s1")
ARGV = (
    "/opt/llama-server",
    "--model",
    "/a/m.gguf",
    "--host",
    "10.0.0.1",
    "--port",
    "1",
    "--parallel",
    "4",
    "-fa",
    "on",
)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"function": "org/other"}, Unused.FUNCTION),
        ({"revision": "r2"}, Unused.FUNCTION),
        ({"build": "llama-server b2"}, Unused.BUILD),
        ({"build": ""}, Unused.BUILD),
        ({"model": "m2"}, Unused.MODEL),
        ({"model": ""}, Unused.MODEL),
        ({"settings": "s2"}, Unused.SETTINGS),
    ],
)
def test_a_conversation_is_used_only_by_a_worker_that_equals_its_own(
    change: dict[str, str], why: Unused | None
) -> None:
    assert why_unused(a_saved_context(), replace(WORKER, **change), age_s=1, most_age_s=10) is why


def test_an_unknown_build_or_model_never_fits_even_itself() -> None:
    unknown = replace(WORKER, build="", model="")

    assert why_unused(a_saved_context(build="", model=""), unknown, age_s=1, most_age_s=10) is Unused.BUILD


def test_a_conversation_that_is_too_old_is_not_used() -> None:
    assert why_unused(a_saved_context(), WORKER, age_s=11, most_age_s=10) is Unused.AGE


def test_settings_are_the_options_without_what_belongs_to_a_host() -> None:
    moved = ("/usr/bin/server", "-m", "--model", "/b/m.gguf", "--host", "10.0.0.2", "--port", "2", *ARGV[7:])

    assert settings_digest(ARGV) == settings_digest(moved)
    assert settings_digest(ARGV) != settings_digest((*ARGV[:-1], "off"))
    assert settings_digest(ARGV) != settings_digest((*ARGV[:7], "--parallel", "8", *ARGV[9:]))


def test_a_restore_that_takes_longer_than_the_prompt_is_not_begun() -> None:
    rates, saved = Rates(), a_saved_context(size=100 * MIB, prefill_s=1.0)
    before = is_slow(saved, rates)

    rates.learn(100 * MIB, took_s=20.0)

    assert not before
    assert is_slow(saved, rates)


def test_a_transfer_counts_for_the_host_that_was_measured_only() -> None:
    rates, saved = Rates(), a_saved_context(size=100 * MIB, prefill_s=6.0)

    rates.learn(100 * MIB, took_s=100.0, peer="far")

    assert is_slow(saved, rates, "far")
    assert not is_slow(saved, rates, "near")
    assert not is_slow(saved, rates)


def test_an_unknown_prefill_time_forbids_no_restore() -> None:
    assert not is_slow(a_saved_context(size=10**12, prefill_s=0.0), Rates())


def test_the_old_ones_are_removed_and_then_the_oldest_until_the_rest_fits() -> None:
    saved = [a_saved_context(id=str(n), size=10, at=float(n)) for n in range(5)]

    def removed(**limits: int) -> list[str]:
        return to_remove(saved, now=10.0, **{"limit": 1000, "most": 10, "most_age_s": 100, **limits})

    assert removed() == []
    assert removed(most_age_s=8) == ["0", "1"]
    assert removed(limit=25) == ["0", "1", "2"]
    assert removed(most=4) == ["0"]
    assert removed(limit=0) == ["0", "1", "2", "3", "4"]


def test_a_build_is_known_by_its_package_or_its_own_number() -> None:
    assert build_of("xllamacpp", {"xllamacpp": "0.3"}, "b0-unknown") == "xllamacpp 0.3"
    assert build_of("llama-server", {}, "b6123-abc") == "llama-server b6123-abc"
    assert build_of("llama-server", {}, "b0-unknown") == ""
    assert build_of("llama-server", {}, "") == ""
