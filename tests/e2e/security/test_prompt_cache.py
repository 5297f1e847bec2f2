"""Keys at one llama.cpp learn nothing about each other's prompts, unless they are in one group."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.security.keyed import CATALOGUE, Keyed, started
from tests.support.catalogues import gguf
from tests.support.stack import eventually

pytestmark = pytest.mark.xdist_group("security")
PLAN, SONG = "to sail at dawn with seven ships " * 8, "the harbour sleeps and all its lamps are low " * 8


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """A cortex of one router worker with the demo model."""
    demo = gguf("one/demo", "demo:harbour", context=1024, target_concurrency=2)
    keeps = gguf("one/kept", "demo:harbour", context=4096, target_concurrency=2, keep_context=True)
    with started(tmp_path_factory.mktemp("llama"), workers=1, catalogue="\n".join((demo, keeps, CATALOGUE))) as running:
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


def saved(keyed: Keyed) -> list[dict[str, Any]]:
    """Return the saved conversations."""
    with keyed.client("admin") as http:
        return list(http.get("/admin/contexts").json()["contexts"])


def test_a_conversation_comes_back_after_its_worker_left_and_only_to_its_own_key(llama: Keyed) -> None:
    plan = [{"role": "user", "content": PLAN * 20}]
    first = llama.ask("mine", "one/kept", messages=plan, max_tokens=8, temperature=0).json()
    later = [*plan, first["choices"][0]["message"], {"role": "user", "content": "And then?"}]
    warm = llama.ask("mine", "one/kept", messages=later, max_tokens=8, temperature=0).json()
    with llama.client("admin") as http:
        http.post("/admin/functions/one/kept/cool").raise_for_status()
        eventually(lambda: saved(llama), within_s=15, what="the conversation to be saved")

    theirs = llama.ask("inference", "one/kept", messages=later, max_tokens=8, temperature=0)
    mine = llama.ask("mine", "one/kept", messages=later, max_tokens=8, temperature=0)

    prompt = first["usage"]["prompt_tokens"]
    assert "x-cortex-context" not in theirs.headers
    assert theirs.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert int(mine.headers["x-cortex-context"].removeprefix("restored ")) > prompt > 1024
    assert mine.json()["usage"]["prompt_tokens_details"]["cached_tokens"] >= 0.9 * prompt
    assert mine.json()["choices"][0]["message"] == warm["choices"][0]["message"]
    eventually(lambda: not saved(llama), within_s=5, what="the conversation to be used up")
