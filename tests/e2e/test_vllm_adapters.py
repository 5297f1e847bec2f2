"""Adapters that an instance loads while it runs, on one process that loads them as vLLM does; `tests/vllm` has the real
one."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from cortex.platform.record import Instance
from tests.support import small_vllm
from tests.support.catalogues import entry
from tests.support.fleet import Fleet
from tests.support.stack import eventually

pytestmark = pytest.mark.xdist_group("small-vllm")

SAYS = {"small": "hello", "calm": "hello", "legal": "legal", "medical": "medical", "brief": "legal"}


def ask(fleet: Fleet, name: str) -> str:
    answer = fleet.chat(name)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == name
    return str(answer.json()["choices"][0]["message"]["content"])


def instance(fleet: Fleet) -> Instance:
    # After the restart of an agent, its record may expire before it is published again.
    host = eventually(lambda: fleet.records().get("a"), what="the host's record")
    assert host
    (only,) = host.instances
    return only


def test_an_adapter_is_loaded_at_its_first_request_beside_the_others(vllm_fleet: Fleet) -> None:
    vllm_fleet.rest()
    ask(vllm_fleet, "small")
    before = instance(vllm_fleet)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda name: (name, ask(vllm_fleet, name)), list(SAYS) * 4))

    after = instance(vllm_fleet)
    assert all(SAYS[name] == text for name, text in answers)
    assert before.adapters == {}
    assert set(after.adapters) == {"legal", "medical", "brief"}
    assert (after.id, after.pid, len(vllm_fleet.workers())) == (before.id, before.pid, 1)
    assert before.memory_mb == after.memory_mb


def test_a_cold_function_with_an_adapter_starts_its_base(vllm_fleet: Fleet) -> None:
    vllm_fleet.rest()

    assert ask(vllm_fleet, "medical") == "medical"
    assert set(instance(vllm_fleet).adapters) == {"medical"}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("broken", "the engine cannot load the adapter broken: its log has the reason"),
        ("nowhere", "nowhere do not exist"),
    ],
)
def test_an_adapter_that_does_not_load_fails_its_function_alone(vllm_fleet: Fleet, name: str, why: str) -> None:
    before = ask(vllm_fleet, "small"), instance(vllm_fleet).pid

    answers = [vllm_fleet.chat(name) for _ in range(2)]

    assert [a.status_code for a in answers] == [503, 503]
    assert answers[0].json()["error"]["code"] == "adapter_failed"
    assert why in instance(vllm_fleet).adapter_problems[name]
    assert (ask(vllm_fleet, "legal"), ask(vllm_fleet, "small"), instance(vllm_fleet).pid) == ("legal", *before)


def test_a_restarted_agent_keeps_the_adapters(vllm_fleet: Fleet) -> None:
    ask(vllm_fleet, "legal")
    before = instance(vllm_fleet)

    vllm_fleet.kill("a")
    vllm_fleet.start_agent("a")
    eventually(lambda: '"adopted"' in vllm_fleet.log("a"), within_s=30, what="the worker to be adopted")

    assert ask(vllm_fleet, "legal") == "legal"
    after = instance(vllm_fleet)
    assert (after.pid, after.adapters) == (before.pid, before.adapters)
    assert ask(vllm_fleet, "medical") == "medical"


def test_a_changed_entry_of_an_adapter_restarts_nothing(vllm_fleet: Fleet) -> None:
    assert ask(vllm_fleet, "legal") == "legal"
    before, text = instance(vllm_fleet), vllm_fleet.models.read_text()
    adapters = vllm_fleet.folder / "adapters"
    for name in ("later", "new"):
        small_vllm.write_adapter(adapters / name)

    changed = text.replace(entry("legal", base="small", adapter=str(adapters / "legal")), "")
    assert changed != text
    changed += entry("legal", base="small", adapter=str(adapters / "later"))
    vllm_fleet.models.write_text(changed + entry("new", base="small", adapter=str(adapters / "new")))
    try:
        eventually(lambda: vllm_fleet.http.get("/v1/models/new").status_code == 200, what="the new function")

        assert (ask(vllm_fleet, "legal"), ask(vllm_fleet, "new"), ask(vllm_fleet, "brief")) == ("later", "new", "legal")
        assert instance(vllm_fleet).pid == before.pid
    finally:
        vllm_fleet.models.write_text(text)
        eventually(lambda: vllm_fleet.http.get("/v1/models/new").status_code == 404, what="the former catalogue")
    assert ask(vllm_fleet, "legal") == "legal"


def test_an_adapter_of_a_higher_rank_than_the_instance_was_started_for_is_a_problem_with_the_fix(
    vllm_fleet: Fleet,
) -> None:
    ask(vllm_fleet, "small")
    text, deep = vllm_fleet.models.read_text(), vllm_fleet.folder / "adapters" / "deep"
    small_vllm.write_adapter(deep, rank=512)
    vllm_fleet.models.write_text(text + entry("deep", base="small", adapter=str(deep)))
    try:
        eventually(lambda: vllm_fleet.http.get("/v1/models/deep").status_code == 200, what="the new function")

        assert vllm_fleet.chat("deep").status_code == 503
        assert "its rank is 512" in instance(vllm_fleet).adapter_problems["deep"]
        assert "`cortex fn cool small` lets the next start take it" in instance(vllm_fleet).adapter_problems["deep"]
        vllm_fleet.rest()
        assert ask(vllm_fleet, "deep") == "deep"
    finally:
        vllm_fleet.models.write_text(text)
