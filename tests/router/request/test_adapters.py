"""The adapter in a request to shared instances: its number or its name, and an error of its function alone."""

import asyncio
import json
from typing import cast

import pytest
from msgspec.structs import replace

from cortex.functions.spec import Adapter, Engine, Function
from cortex.functions.variants import adapter_name, adapter_number
from cortex.platform.agent_messages import AdapterState, EnsureAdapter
from cortex.platform.fleet import Fleet
from cortex.platform.record import HostRecord, Instance
from cortex.platform.registry import Registry
from cortex.router.activation.agents import Agents, AgentUnavailable
from cortex.router.errors import AdapterFailed, NotReadyInTime
from cortex.router.fleet_view import FleetView
from cortex.router.live_catalogue import Target
from cortex.router.request import adapters
from cortex.router.request.adapters import AdapterLoads, able, check_adapter, with_adapter
from tests.support.factories import HOST, a_host, an_instance

BASE = Function(id="base", engine=Engine.LLAMACPP)
CALM = Function(id="calm", engine=Engine.LLAMACPP, variant_of="base")
LEGAL = Function(id="legal", engine=Engine.LLAMACPP, variant_of="base", adapter="org/a")
AT = an_instance("i", function="base", server="xllamacpp", adapters={"other": 0, "legal": 1})


V_BASE = replace(BASE, engine=Engine.VLLM, adapters=(Adapter("legal", "org/a"),))
V_LEGAL = replace(LEGAL, engine=Engine.VLLM)
NUMBER = adapter_number("org/a")
HAS_NOT = an_instance("i", function="base", server="vllm", revision="r")
HAS = replace(HAS_NOT, adapters={"legal": NUMBER})


def to(function: Function, base: Function = BASE) -> Target:
    return Target(function, "r", None if function.id == base.id else base, True)


TO_LEGAL = to(V_LEGAL, V_BASE)


@pytest.mark.parametrize(
    ("function", "lora"),
    [(BASE, [{"id": 0, "scale": 0.0}]), (CALM, [{"id": 0, "scale": 0.0}]), (LEGAL, [{"id": 1, "scale": 1.0}])],
)
def test_every_request_to_llama_cpp_names_its_adapter(function: Function, lora: list[object]) -> None:
    body = with_adapter(b'{"model":"base","lora":[{"id":0,"scale":9}]}', to(function), AT)

    assert json.loads(bytes(body))["lora"] == lora  # the last of duplicates counts, as in llama.cpp


def test_an_instance_without_adapters_gets_the_body_unchanged() -> None:
    assert with_adapter(b"{}", to(BASE), replace(AT, adapters={})) == b"{}"


def test_vllm_knows_an_adapter_by_a_name_that_follows_from_its_source() -> None:
    assert (TO_LEGAL.worker_model, to(V_BASE, V_BASE).worker_model) == (adapter_name("legal", NUMBER), "base")
    assert to(LEGAL).worker_model == "base"
    assert with_adapter(b"{}", TO_LEGAL, HAS) == b"{}"


def test_an_adapter_that_is_not_loaded_is_an_error_with_the_reason_for_operators() -> None:
    instance = replace(AT, adapters={"other": 0}, adapter_problems={"legal": "it is for another base"})

    check_adapter(to(BASE), instance)
    check_adapter(to(CALM), instance)
    with pytest.raises(AdapterFailed) as error:
        check_adapter(to(LEGAL), instance)
    assert "'legal' cannot be served: it is for another base" in error.value.fault(operator=True).message
    assert "another base" not in error.value.fault().message
    with pytest.raises(AdapterFailed, match="was started without it"):
        check_adapter(to(LEGAL), replace(AT, adapters={}))


def idle(instance: str) -> int:
    return 0


def busy(instance: str) -> int:
    return V_LEGAL.target_concurrency


def test_an_instance_with_the_adapter_is_preferred_to_one_without() -> None:
    without = replace(AT, id="j", adapters={"other": 0})

    assert able(to(LEGAL), (without, AT), idle) == (AT,)
    assert able(to(LEGAL), (without,), idle) == (without,)
    assert able(to(BASE), (without, AT), idle) == (without, AT)
    assert able(to(CALM), (without, AT), idle) == (without, AT)


def test_the_adapter_of_an_earlier_entry_is_not_that_of_the_present_one() -> None:
    earlier = replace(HAS, id="j", adapters={"legal": adapter_number("org/earlier")})

    assert able(TO_LEGAL, (earlier, HAS), idle) == (HAS,)
    assert able(TO_LEGAL, (earlier,), idle) == (earlier,)


def test_an_instance_where_an_adapter_has_failed_is_the_last_to_try() -> None:
    failed = replace(HAS_NOT, id="j", adapter_problems={"legal": "broken"})

    assert able(TO_LEGAL, (failed, HAS_NOT), idle) == (HAS_NOT,)
    assert able(TO_LEGAL, (failed,), idle) == (failed,)


def test_busy_instances_with_the_adapter_are_helped_by_those_that_would_load_it() -> None:
    other, failed = replace(HAS_NOT, id="j"), replace(HAS_NOT, id="k", adapter_problems={"legal": "broken"})

    assert able(TO_LEGAL, (HAS, other, failed), busy) == (HAS, other)
    assert able(TO_LEGAL, (HAS, other, failed), idle) == (HAS,)
    assert able(to(LEGAL), (AT, replace(AT, id="j", adapters={})), busy) == (AT,)


class Host:
    """A host with one instance, as its record has it, and its agent."""

    def __init__(self, instance: Instance = HAS_NOT) -> None:
        self.instances: tuple[Instance, ...] = (instance,)
        self.answer: AdapterState | None = AdapterState()
        self.requests: list[EnsureAdapter] = []
        self.view = FleetView(cast(Registry, self), "router-1")
        self.loads = AdapterLoads(self.view, cast(Agents, self))

    async def fleet(self, now: float) -> Fleet:
        return Fleet(hosts={HOST: replace(a_host(), instances=self.instances)}, at=now)

    async def ensure_adapter(self, host: HostRecord, request: EnsureAdapter) -> AdapterState:
        self.requests.append(request)
        if self.answer is None:
            raise AgentUnavailable("it did not answer")
        return self.answer

    async def has(self, *instances: Instance) -> None:
        """The host's record changes."""
        self.instances = instances
        await self.view.refresh()

    async def wait(self, timeout_s: float = 5.0) -> bool:
        await self.view.refresh()
        return await self.loads.wait(TO_LEGAL, self.instances[0], timeout_s)

    async def until_requested(self) -> None:
        async with asyncio.timeout(5):
            while not self.requests:  # noqa: ASYNC110 (the view has no event for it)
                await asyncio.sleep(0)


async def test_requests_wait_for_one_load_of_an_adapter() -> None:
    host = Host()
    waiting = [asyncio.create_task(host.wait()) for _ in range(3)]
    await host.until_requested()
    loading = replace(HAS_NOT, adapter_steps={"legal": "loading"})

    await host.has(loading)
    await host.has(HAS)

    assert await asyncio.gather(*waiting) == [True] * 3
    assert host.requests == [EnsureAdapter(V_BASE, "i", "legal")]
    assert await host.wait()
    assert len(host.requests) == 1


async def test_an_adapter_that_cannot_be_loaded_fails_every_request_that_waits() -> None:
    host = Host()
    host.answer = AdapterState(problem="it does not fit")

    results = await asyncio.gather(host.wait(), host.wait(), return_exceptions=True)

    assert len(host.requests) == 1
    for result in results:
        assert isinstance(result, AdapterFailed)
        assert "'legal' cannot be served: it does not fit" in result.fault(operator=True).message


async def test_a_request_whose_instance_leaves_meanwhile_waits_for_another() -> None:
    host = Host()
    waiting = asyncio.create_task(host.wait())
    await host.until_requested()

    await host.has(replace(HAS_NOT, id="j"))

    assert await waiting is False


async def test_an_agent_that_does_not_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "AGAIN_S", 0.01)
    host = Host()
    host.answer = None
    waiting = asyncio.create_task(host.wait())
    await host.until_requested()

    host.answer = AdapterState(loaded=True)

    assert await waiting
    assert len(host.requests) >= 2


async def test_a_wait_for_an_adapter_has_an_end() -> None:
    host = Host(replace(HAS_NOT, adapter_steps={"legal": "1 MiB of 2 MiB"}))

    with pytest.raises(NotReadyInTime) as error:
        await host.wait(0.01)

    assert "was not loaded in time: 1 MiB of 2 MiB" in error.value.fault(operator=True).message
    await host.loads.close()


async def test_a_server_that_loads_adapters_at_its_start_is_asked_for_none() -> None:
    assert await Host(replace(AT, adapters={})).loads.wait(to(LEGAL), AT, 1.0)
