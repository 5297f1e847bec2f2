"""`cortex why` and `cortex events`: the decision log and its live stream."""

import contextlib
import time
from collections.abc import Iterable, Sequence
from math import ceil
from typing import TYPE_CHECKING

import msgspec
import rich_click as click
from msgspec import Struct

from cortex.cli.client import Router
from cortex.cli.exits import NOT_FOUND, Failed
from cortex.cli.fn import progress_text
from cortex.cli.names import FUNCTION
from cortex.cli.tables import ago, console, table
from cortex.cli.visible import echo, echo_json
from cortex.platform.decisions import DecisionRecord
from cortex.platform.scheduling.reasons import DecisionKind
from cortex.router.api_types import InstanceView, RequestSummary
from cortex.router.decision_log import RouterDecision

if TYPE_CHECKING:
    from rich.table import Table


@click.command()
@click.argument("subject", type=FUNCTION, metavar="FUNCTION|REQUEST-ID")
@click.option("-n", "--limit", type=click.IntRange(1, 5000), default=30, show_default=True, help="Decisions to show.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def why(subject: str, limit: int, as_json: bool) -> None:
    """Explain the state of a function, or the course of a request, by its decisions and their inputs."""
    router = Router()
    try:
        function = router.function(subject)
    except Failed as failed:
        if failed.exit_code != NOT_FOUND:
            raise
        _explain_request(router, subject, limit, as_json, str(failed))
        return
    decisions = router.decisions(limit, function=function.id)
    if as_json:
        echo_json({"function": function, "decisions": decisions}, indent=2)
        return
    out = console()
    out.print(f"{function.id}: {function.state}", markup=False)
    for i in function.instances:
        out.print(f"  {i.id} on {i.host}: {progress_text(i, function.now)}" + _leaving(i, function.now), markup=False)
    for wait in function.in_line:
        out.print(f"  it {wait}", markup=False)
    if function.failure:
        out.print(f"  last failure: {function.failure}", markup=False)
    _explain(decisions)


def _leaving(instance: InstanceView, now: float) -> str:
    """Return why an instance leaves, if it does."""
    if instance.yields_to:
        latest = f"when its requests end, in at most {ceil(max(0.0, instance.deadline - now))} s"
        return f", closing for the turn of {instance.yields_to}: it leaves {latest}"
    return f", {instance.why}" if instance.why else ""


def _explain_request(router: Router, id: str, limit: int, as_json: bool, error: str) -> None:
    requests: tuple[RequestSummary, ...] = ()
    with contextlib.suppress(Failed):
        requests = router.request(id)
    decisions = list(router.decisions(limit, request=id))
    instances = {i for i in (*(r.instance for r in requests), *(d.instance for d in decisions)) if i}
    for instance in sorted(instances):
        ids = {r.id for r in decisions}
        decisions += [r for r in router.decisions(limit, instance=instance) if r.id not in ids]
    if not requests and not decisions:
        raise Failed(
            f"'{id}' is neither a function nor a recent request",
            hint=f"{error}\nAnswers have the request id in the header x-request-id.",
            code=NOT_FOUND,
        )
    decisions.sort(key=lambda r: -r.at)
    if as_json:
        echo_json({"requests": requests, "decisions": decisions}, indent=2)
        return
    for r in requests:
        where = f"{r.instance} on {r.host}" if r.instance else "no instance"
        line = f"{r.id}: {r.function} ({r.dialect}), {r.phase}, status {r.status or '-'}, by {where}"
        line += f", key {r.who}" if r.who else ""
        console().print(line, markup=False)
        times = f"  {r.start}: queued {r.queued_ms} ms, first token {r.first_ms or '-'} ms"
        console().print(f"{times}, {r.age_s:.2f} s in all, {r.tokens_out} tokens", markup=False)
        for attempt in r.tries:
            console().print(f"  {attempt.instance} on {attempt.host} failed: {attempt.why}", markup=False)
        if r.fault:
            console().print(f"  {r.fault}: {r.why}", markup=False)
    _explain(decisions)


def _explain(decisions: Sequence[DecisionRecord]) -> None:
    if decisions:
        console().print(decision_table(decisions))
    else:
        console().print("No decisions: none were made, or they have expired.", markup=False)


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Stream new ones.")
@click.option("--function", default="", help="Only of this function.")
@click.option("-n", "--limit", type=click.IntRange(1, 5000), default=20, show_default=True, help="Past ones to show.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def events(follow: bool, function: str, limit: int, as_json: bool) -> None:
    """Show the latest decisions of agents, routers and operators."""
    router = Router()
    past = reversed(router.decisions(limit, function=function))
    last_id = ""
    for decision in past:
        _print_event(decision, as_json)
        last_id = decision.id
    if not follow:
        return
    for line in router.lines("/admin/events", {"function": function} if function else {}):
        if line.startswith("data: ") and '"what"' in line:
            decision = msgspec.json.decode(line.removeprefix("data: "), type=DecisionRecord)
            if decision.id > last_id:
                _print_event(decision, as_json)


def _print_event(decision: DecisionRecord, as_json: bool) -> None:
    if as_json:
        echo_json(decision)
        return
    at = time.strftime("%H:%M:%S", time.localtime(decision.at))
    where = " ".join(w for w in (decision.function, decision.host, decision.instance) if w)
    echo(f"{at}  {decision.what:<11} {where}{': ' if decision.why else ''}{decision.why}")


def decision_table(decisions: Iterable[DecisionRecord], *, function: bool = True) -> "Table":
    """Return decisions as a table, with their main inputs."""
    rows = table("WHEN", "WHAT", *(["FUNCTION"] if function else []), "BY", "WHY", "INPUTS")
    for r in decisions:
        names = [r.function or "-"] if function else []
        rows.add_row(ago(r.at), r.what, *names, r.by.partition(":")[2][:24] or r.by, r.why, input_text(r))
    return rows


def input_text(decision: DecisionRecord) -> str:
    """Return a decision's inputs as one line."""
    if not decision.inputs:
        return ""
    try:
        inputs = msgspec.convert(decision.inputs, _Inputs)
    except msgspec.ValidationError:  # of another version of cortex
        inputs = _Inputs()
    match decision.what:
        case DecisionKind.READY:
            return ", ".join(f"{phase} {seconds:.1f}s" for phase, seconds in inputs.phases.items())
        case DecisionKind.PLACED:
            free = ", ".join(f"{d.id} {d.free_mb} free" for d in inputs.devices)
            return f"{inputs.memory_mb} MiB ({inputs.memory_from}); {free}"
        case DecisionKind.EVICTED | DecisionKind.CLOSED:
            stays = ", ".join(f"{o.function} idle {o.idle_s}s" for o in inputs.others)
            victim = inputs.victim
            activity = f"{victim.in_flight} in flight" if victim.in_flight else f"idle {victim.idle_s}s"
            return activity + (f"; stays: {stays}" if stays else "")
        case DecisionKind.REFUSED:
            devices = ", ".join(f"{d.id} {d.free_mb} MiB free" for d in inputs.devices)
            turn_in_s = inputs.turn_in_s
            return devices if turn_in_s is None else f"{devices}, turn in at most {ceil(turn_in_s)} s"
        case RouterDecision.PROPOSED:
            return "; ".join(f"{c.host}: {_prediction(c)}" for c in inputs.candidates)
    plain = ((k, v) for k, v in decision.inputs.items() if not isinstance(v, (list, dict)) and v not in (None, ""))
    return ", ".join(f"{k} {v}" for k, v in plain)


class _Device(Struct, frozen=True):
    id: str
    free_mb: int


class _Candidate(Struct, frozen=True):
    function: str = ""
    idle_s: float | None = None
    in_flight: int | None = None


class _HostCandidate(Struct, frozen=True):
    host: str
    evict: tuple[str, ...] = ()
    why_not: str = ""


class _Inputs(Struct, frozen=True):
    """The inputs of decisions, as far as they are shown."""

    phases: dict[str, float] = {}
    memory_mb: int | None = None
    memory_from: str = ""
    devices: tuple[_Device, ...] = ()
    victim: _Candidate = _Candidate()
    others: tuple[_Candidate, ...] = ()
    turn_in_s: float | None = None
    candidates: tuple[_HostCandidate, ...] = ()


def _prediction(candidate: _HostCandidate) -> str:
    if candidate.why_not:
        return candidate.why_not
    return f"evicts {len(candidate.evict)}" if candidate.evict else "room"
