"""An agent's answer to `ensure`: no start after the router's time limit, and none that waits for a hung path."""

import os
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import State
from cortex.functions.spec import Engine, Function
from cortex.platform.agent import loop, state_file
from cortex.platform.agent.loop import Agent
from cortex.platform.agent_messages import ANSWER_S, DECIDE_S, Accepted, Ensure, PlacementPlan, Rejected
from cortex.platform.blocking_calls import BlockingCalls
from cortex.platform.keys import HostToken
from cortex.platform.record import FailureKind, Tier
from cortex.platform.registry import RecordUnavailable, Registry
from cortex.platform.scheduling import requests
from cortex.platform.scheduling.placement import When
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.platform.scheduling.saved_state import AgentState
from cortex.platform.settings import DeclaredDevice, Settings
from cortex.platform.weights.disk import LOOK_S
from cortex.router.activation import agents
from tests.support.stack import own_redis

F = Function(id="f", engine=Engine.FAKE, vram_mb=1000)


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    """An agent whose loops do not run, with a Redis and a GPU of its own."""
    own = replace(
        Settings().agent,
        state_dir=str(tmp_path / "state"),
        log_dir=str(tmp_path / "logs"),
        cache_dir=str(tmp_path / "cache"),
        devices=(DeclaredDevice(name="24 GB", vram_mb=24_576),),
        launcher=False,
    )
    with own_redis(tmp_path) as url:
        registry = Registry(url)
        settings = replace(Settings(), agent=own, redis=replace(Settings().redis, url=url))
        an_agent = Agent(settings, HostToken.of_fleet(tmp_path / "token", "a"), registry)
        yield an_agent
        await an_agent.supervisor.close()
        await registry.close()


def pending_effects(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Note what the agent has the supervisor do, instead of doing it."""
    effects: list[Any] = []
    monkeypatch.setattr(agent.supervisor, "perform", effects.append)
    return effects


async def test_a_decision_in_time_begins_a_start(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    effects = pending_effects(agent, monkeypatch)

    answer = await agent.ensure(Ensure(F))

    assert isinstance(answer, Accepted)
    assert any(type(e).__name__ == "Spawn" for e in effects)


async def test_a_program_that_is_not_listed_is_neither_started_nor_planned(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    effects = pending_effects(agent, monkeypatch)
    agent.settings = replace(agent.settings, agent=replace(agent.settings.agent, commands=(sys.executable,)))
    listed, other = (
        Function(id="f", engine=Engine.COMMAND, command=(name, "{port}")) for name in (sys.executable, "touch")
    )

    answers = [await agent.ensure(Ensure(other)), await agent.plan(other)]

    assert effects == []
    for refused in answers:
        assert isinstance(refused, Rejected)
        assert (refused.when, "`[agent] commands`" in refused.reason) == (When.NEVER, True)
    assert isinstance(await agent.ensure(Ensure(listed)), Accepted)


async def test_an_agent_begins_with_what_failed_before_its_restart(agent: Agent, tmp_path: Path) -> None:
    unparkable = {"revision": {Tier.SLEEP: "HTTP 500"}}
    state_file.write(agent._state_path, AgentState(unparkable=unparkable, builds=agent._builds))

    following = Agent(agent.settings, HostToken.of_fleet(tmp_path / "token", "a"), agent._registry)

    assert following.scheduler.record().unparkable == unparkable
    await following.supervisor.close()


async def test_a_late_decision_starts_nothing(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    effects = pending_effects(agent, monkeypatch)
    monkeypatch.setattr(loop, "DECIDE_S", 0.0)

    answer = await agent.ensure(Ensure(F))

    assert isinstance(answer, Rejected)
    assert answer.when is When.LATER
    assert effects == []
    assert agent.record().instances == ()


async def test_an_agent_that_may_not_publish_starts_nothing(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the simulation: no router saw the start, and another host started the function again."""
    effects = pending_effects(agent, monkeypatch)
    other = replace(agent.record(), home="another machine", address="http://elsewhere")
    await agent._registry.publish_host(other, 60.0)
    await agent.publisher.publish()

    answer = await agent.ensure(Ensure(F))

    assert isinstance(answer, Rejected)
    assert (answer.when, "elsewhere" in answer.reason) == (When.LATER, True)
    assert effects == []


async def test_a_start_is_withdrawn_when_its_own_record_finds_the_name_taken(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the simulation: a host that came back wrote nothing yet, and its earlier boot's record was alive."""
    pending_effects(agent, monkeypatch)
    other = replace(agent.record(), home="another machine", address="http://elsewhere")
    await agent._registry.publish_host(other, 60.0)

    answer = await agent.ensure(Ensure(F))

    assert isinstance(answer, Rejected)
    assert (answer.when, "elsewhere" in answer.reason) == (When.LATER, True)
    assert {i.state for i in agent.record().instances} <= {State.STOPPING}
    assert [(f.kind, f.retry_at) for f in agent.record().failures] == [(FailureKind.ROOM, 0.0)]


async def test_while_the_record_cannot_be_written_a_routers_start_is_refused_and_one_through_the_agent_is_made(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    effects = pending_effects(agent, monkeypatch)
    monkeypatch.setattr(agent._registry, "publish_host", _away)
    await agent.publisher.publish()

    refused = await agent.ensure(Ensure(F))
    before = list(effects)
    accepted = await agent.ensure(Ensure(F), unrecorded=True)

    assert isinstance(refused, Rejected)
    assert (refused.when, "cannot write to the record" in refused.reason, before) == (When.LATER, True, [])
    assert isinstance(accepted, Accepted)


async def test_a_start_whose_record_is_lost_on_the_way_is_withdrawn_without_a_back_off(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No router would find it, and each would start the function elsewhere."""
    pending_effects(agent, monkeypatch)
    await agent.publisher.publish()
    publish_host = agent._registry.publish_host
    monkeypatch.setattr(agent._registry, "publish_host", _away)

    answers = [await agent.ensure(Ensure(F)), await agent.ensure(Ensure(F))]
    left = [i.state for i in agent.record().instances]
    failures = [(f.kind, f.retry_at) for f in agent.record().failures]
    monkeypatch.setattr(agent._registry, "publish_host", publish_host)
    await agent.publisher.publish()

    assert [(type(a), a.when) for a in answers if isinstance(a, Rejected)] == [(Rejected, When.LATER)] * 2
    assert set(left) <= {State.STOPPING}
    assert failures == [(FailureKind.ROOM, 0.0)]
    assert not agent.publisher.record_away


async def _away(*_: object) -> None:
    raise RecordUnavailable("Redis does not answer")


def test_an_agent_stops_deciding_well_before_its_router_stops_waiting() -> None:
    assert LOOK_S < DECIDE_S < ANSWER_S == agents.TIMEOUT_S


async def test_a_function_on_a_hung_path_is_refused_for_now_with_a_decision_and_others_start(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending_effects(agent, monkeypatch)
    agent.supervisor.looks = BlockingCalls(0.2, hint="is its mount hung?")
    source = str(tmp_path / "hung" / "m.gguf")
    stuck = Function(
        id="stuck", engine=Engine.COMMAND, command=(sys.executable, "{source}"), source=source, vram_mb=1000
    )
    back, stat = threading.Event(), os.stat

    def slow(path: Any, *args: Any, **more: Any) -> os.stat_result:
        if str(path).startswith(str(tmp_path / "hung")):
            back.wait()
        return stat(path, *args, **more)

    monkeypatch.setattr(os, "stat", slow)

    refused = [await agent.ensure(Ensure(stuck)) for _ in range(8)]
    planned = await agent.plan(stuck)
    answer = await agent.ensure(Ensure(F))
    threads = agent.supervisor.looks.under_way()
    decisions = await agent._registry.decisions({"function": "stuck"}, 10)
    back.set()

    assert {(type(r), str(r.when), r.reason) for r in refused if isinstance(r, Rejected)} == {
        (Rejected, "later", f"{stuck.source} does not answer (is its mount hung?)")
    }
    assert not isinstance(planned, PlacementPlan)
    assert isinstance(answer, Accepted)
    assert threads == 1
    assert [(r.what, r.why) for r in decisions] == [("refused", refused[0].reason)]  # type: ignore[union-attr]


async def test_a_function_that_the_hosts_settings_forbid_is_neither_started_nor_planned(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    effects = pending_effects(agent, monkeypatch)
    agent.settings = replace(agent.settings, agent=replace(agent.settings.agent, allow_engines=(Engine.VLLM,)))

    answers = [await agent.ensure(Ensure(F, force=True)), await agent.plan(F)]

    assert [(type(a), a.when) for a in answers if isinstance(a, Rejected)] == [(Rejected, When.NEVER)] * 2
    assert effects == []


async def test_an_event_that_raises_half_way_loses_none_of_its_effects(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    effects = pending_effects(agent, monkeypatch)

    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(requests, "reconcile", broken)

    with pytest.raises(ValueError, match="a bug"):
        await agent.ensure(Ensure(F))

    assert [e.what for e in effects] == [DecisionKind.PLACED]
    assert agent.scheduler.take_effects() == []
