"""Keys at one llama.cpp learn nothing about each other's prompts, unless they are in one group."""

from collections.abc import Iterator

import pytest

from tests.e2e.security.keyed import CATALOGUE, Keyed, started
from tests.support.catalogues import gguf

pytestmark = pytest.mark.xdist_group("security")
PLAN, SONG = "to sail at dawn with seven ships " * 8, "the harbour sleeps and all its lamps are low " * 8


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """A cortex of one router worker with the demo model."""
    demo = gguf("one/demo", "demo:harbour", context=1024, target_concurrency=2)
    with started(tmp_path_factory.mktemp("llama"), workers=1, catalogue=f"{demo}\n{CATALOGUE}") as running:
        running.keys["mine"] = running.make("mine")
        for name in ("grouped", "partner"):
            running.keys[name] = running.make(name, group="search")
        for name in ("mine", "grouped", "partner"):
            running.everywhere(name, 200)
        yield running


def cached(keyed: Keyed, key: str, prompt: str) -> int:
    """Return how many tokens of a prompt a key is told were cached."""
    messages = [{"role": "user", "content": prompt}]
    answer = keyed.ask(key, "one/demo", messages=messages, max_tokens=2).json()
    report = int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert answer.get("timings", {}).get("cache_n", report) == report
    return report


@pytest.mark.long
def test_a_key_finds_only_its_own_cached_prompts(llama: Keyed) -> None:
    for prompt in (PLAN, SONG, PLAN, SONG):  # both slots hold prompts of the first key
        cached(llama, "mine", prompt)
    again = cached(llama, "mine", PLAN)

    theirs = [cached(llama, "inference", prompt) for prompt in (PLAN, SONG)]

    assert again > 50
    assert theirs == [0, 0]
    assert cached(llama, "inference", SONG) > 50


def test_only_keys_of_one_group_find_each_others_cached_prompts(llama: Keyed) -> None:
    for prompt in (PLAN, SONG):
        cached(llama, "grouped", prompt)

    partners, others = cached(llama, "partner", SONG), cached(llama, "inference", SONG)

    assert partners > 50
    assert others == 0
