"""`cortex why` and `cortex events`: why what happened happened, and what happens now."""

import json
import time
from collections.abc import Iterable
from typing import Any

import msgspec
import rich_click as click
from rich.table import Table

from cortex.cli.client import Router
from cortex.cli.exits import NOT_FOUND, Failed
from cortex.cli.names import FUNCTION
from cortex.cli.tables import ago, console, table
from cortex.cli.visible import echo
from cortex.router.activation.waits import Wait


@click.command()
@click.argument("subject", type=FUNCTION, metavar="FUNCTION|REQUEST-ID")
@click.option("-n", "--limit", type=click.IntRange(1, 5000), default=30, show_default=True, help="Receipts to show.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def why(subject: str, limit: int, as_json: bool) -> None:
    """Say why a function is where it is, or how a request went: the decisions and the numbers behind them."""
    router = Router()
    try:
        function = router.function(subject)
    except Failed as failed:
        if failed.exit_code != NOT_FOUND:
            raise
        _request(router, subject, limit, as_json, str(failed))
        return
    receipts = router.decisions(function=function["id"], limit=limit)
    if as_json:
        click.echo(json.dumps({"function": function, "decisions": receipts}, indent=2))
        return
    out = console()
    out.print(f"{function['id']}: {function['state']}", markup=False)
    for i in function["instances"]:
        out.print(f"  {i['id']} on {i['host']}: {i['state']}" + _leaving(i), markup=False)
    for wait in function.get("in_line", ()):  # a router of an earlier release has none
        out.print(f"  it {msgspec.convert(wait, Wait)}", markup=False)
    if function["failure"]:
        out.print(f"  last failure: {function['failure']}", markup=False)
    _explain(receipts)


def _leaving(instance: dict[str, Any]) -> str:
    """Say why an instance leaves, if it does."""
    if instance.get("yields_to"):
        latest = f"when its requests end, in at most {instance['leaves_in_s']:.0f} s"
        return f", closing for the turn of {instance['yields_to']}: it leaves {latest}"
    return f", {instance['why']}" if instance["why"] else ""


def _request(router: Router, id: str, limit: int, as_json: bool, otherwise: str) -> None:
    try:
        requests = router.get(f"/admin/requests/{id}")["requests"]
    except Failed:
        requests = []
    receipts = router.decisions(request=id, limit=limit)
    instances = {r["instance"] for r in (*requests, *receipts) if r["instance"]}
    for instance in sorted(instances):
        known = {r["id"] for r in receipts}
        receipts += [r for r in router.decisions(instance=instance, limit=limit) if r["id"] not in known]
    if not requests and not receipts:
        raise Failed(
            f"nothing is known of '{id}': it is no function, and no request that was served lately",
            hint=f"{otherwise}\nAnswers carry the request id as x-request-id.",
            code=NOT_FOUND,
        )
    receipts.sort(key=lambda r: -r["at"])
    if as_json:
        click.echo(json.dumps({"requests": requests, "decisions": receipts}, indent=2))
        return
    for r in requests:
        where = f"{r['instance']} on {r['host']}" if r["instance"] else "no instance"
        said = f"{r['id']}: {r['function']} ({r['dialect']}), {r['phase']}, status {r['status'] or '-'}, by {where}"
        said += f", key {r['who']}" if r["who"] else ""
        console().print(said, markup=False)
        times = f"  {r['start']}: queued {r['queued_ms']} ms, first token {r['first_ms'] or '-'} ms"
        console().print(f"{times}, {r['age_s']:.2f} s in all, {r['tokens_out']} tokens", markup=False)
        for broke in r["tries"]:
            console().print(f"  {broke['instance']} on {broke['host']} broke: {broke['why']}", markup=False)
        if r["fault"]:
            console().print(f"  {r['fault']}: {r['why']}", markup=False)
    _explain(receipts)


def _explain(receipts: list[dict[str, Any]]) -> None:
    if receipts:
        console().print(decision_table(receipts))
    else:
        console().print("No decision is kept: nothing has happened, or it was long ago.", markup=False)


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on as things happen.")
@click.option("--function", default="", help="Only of this function.")
@click.option("-n", "--limit", type=click.IntRange(1, 5000), default=20, show_default=True, help="Past ones to show.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def events(follow: bool, function: str, limit: int, as_json: bool) -> None:
    """Show what happened lately: every decision of agents, routers and operators."""
    router = Router()
    past = reversed(router.decisions(function=function, limit=limit))
    seen = ""
    for receipt in past:
        _print_event(receipt, as_json)
        seen = receipt["id"]
    if not follow:
        return
    for line in router.lines("/admin/events", {"function": function} if function else {}):
        if line.startswith("data: ") and '"what"' in line:
            receipt = json.loads(line.removeprefix("data: "))
            if receipt["id"] > seen:
                _print_event(receipt, as_json)


def _print_event(receipt: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(receipt))
        return
    at = time.strftime("%H:%M:%S", time.localtime(receipt["at"]))
    where = " ".join(w for w in (receipt["function"], receipt["host"], receipt["instance"]) if w)
    echo(f"{at}  {receipt['what']:<11} {where}{': ' if receipt['why'] else ''}{receipt['why']}")


def decision_table(receipts: Iterable[dict[str, Any]], *, function: bool = True) -> Table:
    """Return receipts as a table, with the numbers that matter."""
    rows = table("WHEN", "WHAT", *(["FUNCTION"] if function else []), "BY", "WHY", "NUMBERS")
    for r in receipts:
        names = [r["function"] or "-"] if function else []
        rows.add_row(ago(r["at"]), r["what"], *names, r["by"].partition(":")[2][:24] or r["by"], r["why"], numbers(r))
    return rows


def numbers(receipt: dict[str, Any]) -> str:
    """Say a receipt's numbers in a line."""
    found = receipt["numbers"]
    if not found:
        return ""
    match receipt["what"]:
        case "ready":
            return ", ".join(f"{phase} {seconds:.1f}s" for phase, seconds in found.get("phases", {}).items())
        case "placed":
            free = ", ".join(f"{d['id']} {d['free_mb']} free" for d in found.get("devices", []))
            return f"{found.get('memory_mb')} MiB ({found.get('memory_from')}); {free}"
        case "evicted" | "closed":
            victim = found.get("victim", {})
            stays = ", ".join(f"{o['function']} idle {o['idle_s']}s" for o in found.get("others", []))
            flying = victim.get("in_flight")
            doing = f"{flying} in flight" if flying else f"idle {victim.get('idle_s')}s"
            return doing + (f"; stays: {stays}" if stays else "")
        case "refused":
            devices = ", ".join(f"{d['id']} {d['free_mb']} MiB free" for d in found.get("devices", []))
            turn_in_s = found.get("turn_in_s")
            return devices if turn_in_s is None else f"{devices}, turn in at most {turn_in_s:.0f} s"
        case "proposed":
            hosts = (f"{c['host']}: {_guess(c)}" for c in found.get("considered", []))
            return "; ".join(hosts)
    return ", ".join(f"{k} {v}" for k, v in found.items() if not isinstance(v, (list, dict)) and v not in (None, ""))


def _guess(considered: dict[str, Any]) -> str:
    if "why_not" in considered:
        return str(considered["why_not"])
    return f"evicts {len(considered['evict'])}" if considered["evict"] else "room"
