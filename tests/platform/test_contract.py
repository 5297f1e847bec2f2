"""Routers and agents may be one release apart: each understands messages of the other."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from cortex.functions.lifecycle import LIVE, State
from cortex.platform import agent_messages, record
from cortex.platform.fleet import Fleet, use
from cortex.platform.record import Cause, FailureKind, Tier
from cortex.platform.record_codec import host_record
from cortex.platform.scheduling.failures import Evidence, Failures, Incident
from cortex.platform.scheduling.parking import admitted_mb, tier_from
from cortex.router.activation.load_balancing import hosts_to_ask
from tests.support.contract import FOLDER, KINDS, spoken
from tests.support.factories import a_function, a_host, a_need, an_instance

RECORDED = sorted(FOLDER.glob("*.json"))
MESSAGES = [(path, name) for path in RECORDED for name in msgspec.json.decode(path.read_bytes())]


@pytest.mark.parametrize(("path", "name"), MESSAGES, ids=[f"{p.stem} {n}" for p, n in MESSAGES])
def test_recorded_messages_decode_without_loss(path: Path, name: str) -> None:
    output = msgspec.json.decode(path.read_bytes())[name]

    understood = msgspec.json.decode(msgspec.json.encode(output), type=KINDS[name])

    assert _within(output, msgspec.to_builtins(understood)) == []


@pytest.mark.parametrize("name", KINDS)
def test_unknown_fields_of_a_later_release_are_ignored(name: str) -> None:
    output = spoken()[name]

    understood = msgspec.convert(_with_more(output), type=KINDS[name])

    assert understood == output


def test_a_word_of_a_later_release_hides_no_host() -> None:
    """A later release may have other states of instances and kinds of failures."""
    incident = Incident("it was killed", FailureKind.OUT_OF_MEMORY, Evidence(cause=Cause.NO_DEVICE))
    failure = Failures().add(an_instance("f"), incident, 1.0)
    host = replace(a_host(an_instance("one", state=State.DRAINING), an_instance("two")), failures=(failure,))
    message = msgspec.json.encode(host)
    for word in (State.DRAINING, FailureKind.OUT_OF_MEMORY, Cause.NO_DEVICE):
        assert message.count(b'"%b"' % word.encode()) == 1
        message = message.replace(b'"%b"' % word.encode(), b'"of tomorrow"')

    understood = host_record(message, host.name)

    assert understood is not None
    assert [i.state for i in understood.instances] == [State.OTHER, State.READY]
    assert [(f.kind, f.cause) for f in understood.failures] == [(FailureKind.CRASH, Cause.UNKNOWN)]
    assert State.OTHER not in LIVE


def test_no_instance_goes_to_a_tier_of_a_later_release() -> None:
    there = an_instance("one", tiers=(Tier.FREEZE,), parked=Tier.FREEZE, state=State.SLEEPING, parks_to=Tier.FREEZE)
    message = msgspec.json.encode(replace(a_host(there), tiers={Tier.FREEZE: ""}))
    assert message.count(b'"freeze"') == 4

    understood = host_record(message.replace(b'"freeze"', b'"of tomorrow"'), a_host().name)

    assert understood is not None
    (instance,) = understood.instances
    assert (instance.parked, understood.tiers) == (Tier.OTHER, {Tier.OTHER: ""})
    assert instance.held_mb == admitted_mb(replace(instance, state=State.PARKING)) == there.memory_mb
    assert tier_from(instance, Tier.SLEEP) is Tier.STOP
    fleet = Fleet(hosts={understood.name: understood})
    function = a_function()
    assert list(hosts_to_ask(a_need(), function, fleet, use(fleet), 0.0)) == [understood.name]


def test_a_function_with_an_unknown_field_is_rejected() -> None:
    output = msgspec.to_builtins(spoken()["ensure"])

    with pytest.raises(msgspec.ValidationError, match="unknown field `key_of_tomorrow`"):
        msgspec.convert(output | {"function": output["function"] | {"key_of_tomorrow": 1}}, type=KINDS["ensure"])


def test_the_recording_has_every_field_and_keeps_earlier_ones() -> None:
    recorded = {name for _, name in MESSAGES}

    assert recorded == set(KINDS)


def test_every_message_between_processes_is_recorded() -> None:
    declared = {
        kind
        for module in (agent_messages, record)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__
    }

    assert declared - {record.ProcessId, record.Death, record.Use} <= _kinds(
        list(spoken().values())
    )  # those are never sent


def _kinds(output: Any) -> set[type]:
    """Return the types of all structs in a value."""
    if isinstance(output, msgspec.Struct):
        return {type(output)} | _kinds(list(msgspec.structs.asdict(output).values()))
    if isinstance(output, dict):
        return _kinds(list(output.values()))
    return {kind for v in output for kind in _kinds(v)} if isinstance(output, (list, tuple)) else set()


def _within(output: Any, understood: Any, at: str = "") -> list[str]:
    """Return where a value that was said is not as it was understood."""
    if isinstance(output, dict) and isinstance(understood, dict):
        return [p for k, v in output.items() for p in _within(v, understood.get(k), f"{at}.{k}")]
    if isinstance(output, (list, tuple)) and isinstance(understood, (list, tuple)) and len(output) == len(understood):
        return [p for n, v in enumerate(output) for p in _within(v, understood[n], f"{at}[{n}]")]
    return [] if output == understood else [f"{at}: {output!r} became {understood!r}"]


def _with_more(output: Any) -> Any:
    """Return the value with an unknown field in every struct that is not decoded strictly."""
    if isinstance(output, msgspec.Struct):
        config = output.__struct_config__
        more = {k: _with_more(v) for k, v in msgspec.structs.asdict(output).items()}
        if config.tag_field is not None:
            more[config.tag_field] = config.tag
        return more if config.forbid_unknown_fields else more | {"field_of_tomorrow": {"a": 1}}
    if isinstance(output, dict):
        return {k: _with_more(v) for k, v in output.items()}
    if isinstance(output, (list, tuple)):
        return [_with_more(v) for v in output]
    return output
