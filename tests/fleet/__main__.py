"""`just test-fleet`: a fleet of real hosts from nothing to nothing, through everything that happens to fleets.

Debian hosts with systemd and sshd are made on this machine, deployed from a wheelhouse over ssh with no way out,
loaded by clients outside, restarted, rebooted, cut from power, joined, removed, upgraded, rolled back and
undeployed. It needs root and says at the end, in a table, what held and what was seen.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from tests.fleet.fleet import GB24, Fleet
from tests.fleet.load import ask_as_anthropic, whole
from tests.fleet.looks import (
    handed_over,
    left_on,
    loaded,
    measured,
    reached,
    refused,
    shown,
    started,
    tokens,
    undisturbed,
    units,
)
from tests.fleet.machines import NETWORK, TOOLS, Machines, machines, until
from tests.fleet.playbook import build
from tests.fleet.report import Report, Step
from tests.support import program
from tests.support.catalogues import fake

MOST_S = 60 * 60


def main() -> int:
    """Run it all; return the exit code."""
    missing = [t for t in TOOLS if not shutil.which(t)]
    if os.geteuid() or missing:
        print(f"test-fleet needs root, and: apt-get install debootstrap systemd-container openssh-client iproute2 "
              f"nftables (missing: {', '.join(missing) or 'nothing'})", file=sys.stderr)  # fmt: skip
        return 2
    names = [s.__name__ for s in STEPS]
    if unknown := [name for name in sys.argv[1:] if name not in names]:
        print(f"test-fleet: no step is called {', '.join(unknown)}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(MOST_S)
    report = Report()
    try:
        with machines() as hosts:
            chosen = [STEPS[names.index(name)] for name in sys.argv[1:]]
            for step in (*FIRST, *chosen) if chosen else STEPS:
                if step is hosts_up:
                    fleet = hosts_up(hosts, report)
                else:
                    step(fleet)
            if os.environ.get("CORTEX_FLEET_KEEP"):
                signal.alarm(0)
                input(f"fleet: it stays until Enter is pressed; ssh -i {hosts.key} root@{NETWORK}.11 … ")
    except (Exception, SystemExit) as error:  # the table is printed whatever happened
        print(f"fleet: ended early: {type(error).__name__}: {error}", file=sys.stderr)
        report.steps.append(Step(f"ended early: {type(error).__name__}"))
        if isinstance(error, SystemExit):
            report.print()
            raise
    report.print()
    return 0 if report.held else 1


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(f"it took over {MOST_S} s")  # no step handles it


def hosts_up(hosts: Machines, report: Report) -> Fleet:
    """Four machines: one for Redis and router, two hosts, one that joins later."""
    with report.step("boot four Debian hosts with systemd and sshd", needed=True) as step:
        fleet = Fleet(hosts, report)
        for host in hosts.hosts.values():
            host.await_up()
        states = [h.says("systemctl is-system-running --wait || true") for h in hosts.hosts.values()]
        step.saw = f"systemd: {', '.join(states)}"
        step.check(states == ["running"] * 4, "systemd is not well everywhere")
    return fleet


def deploy(f: Fleet) -> None:
    """From nothing to a fleet that answers, from a wheelhouse alone."""
    with f.report.step("wheelhouses of two builds, every wheel with its hash", needed=True) as step:
        f.first, f.second = build("one"), build("two")
        step.saw = f"{f.first}, {f.second}"
    with f.report.step("deploy over ssh, no index within reach", needed=True) as step:
        f.catalogue()
        f.deployment.write(f.front, f.members)
        f.deployment.run("secrets")
        f.deployment.run("certificates")
        changed = f.deployment.run("deploy", "-e", f"cortex_version={f.first}")
        f.key = f.front.says("cat /etc/cortex/operator.key")
        step.saw = f"changed {changed}; {shown(f)}"
        step.check(set(f.hosts()) == {"small", "large"}, "not both hosts are seen")
        step.check("chat to cortex/" in f.deployment.output(), "it does not say that it asks a function to chat")
        for host in (f.front, *f.members):
            folders = set(host.says("ls -A /opt/cortex").split())
            step.check(folders == {f.first, "current"}, f"on {host.name}: {folders}")


def again(f: Fleet) -> None:
    """The same once more, and what would be."""
    with f.report.step("deploy again: nothing changes, nothing restarts") as step:
        before, instances = started(f), f.instances()
        changed = f.deployment.run("deploy", "-e", f"cortex_version={f.first}")
        restarted = sorted(unit for unit, start in started(f).items() if before.get(unit) != start)
        step.saw = f"changed {changed}; {len(before)} units, restarted {restarted}; {len(instances)} instances"
        step.check(not any(changed.values()), "something changed")
        step.check(not restarted, "something restarted")
        step.check(instances.items() <= f.instances().items(), "an instance was lost")
    with f.report.step("check mode with another build: says what it would do and does nothing") as step:
        f.deployment.run("deploy", "-e", f"cortex_version={f.second}", "--check", "--diff")
        step.check(f.second in f.deployment.output(), "the diff does not name the build")
        step.check({h["version"] for h in f.hosts().values()} == {f.first}, "something was done")


def closed(f: Fleet) -> None:
    """What is closed to whom."""
    with f.report.step("units: systemd-analyze verify, security scores, users, passwords") as step:
        units(f, step)
    with f.report.step("the firewall: outsiders reach the router and nothing else") as step:
        open_ = [reached(a, p) for a, p in ((f.front.address, 31313), (f.front.address, 6380),
                                             (f.small.address, 13131), (f.small.address, 20000))]  # fmt: skip
        step.saw = f"router {open_[0]}, Redis {open_[1]}, agent {open_[2]}, worker {open_[3]}"
        step.check(open_ == ["open", "refused", "refused", "refused"], "not as it should be")


def monitored(f: Fleet) -> None:
    """What Prometheus sees."""
    with f.report.step("Prometheus reads the router's metrics, with the rules of alerts") as step:
        until(lambda: measured(f, "query?query=up")["result"][0]["value"][1] == "1", within_s=60, what="it is read")
        groups = measured(f, "rules")["groups"]
        step.saw = f"{sum(len(g['rules']) for g in groups)} rules"
        step.check(groups, "no rules")


def requests(f: Fleet) -> None:
    """What clients outside see."""
    with f.report.step("cold, warm, alias, Anthropic") as step:
        cold, warm, alias = f.ask("t/one"), f.ask("t/one", stream=True), f.ask("one")
        anthropic, llama = ask_as_anthropic(f.url, "harbour", key=f.key), f.ask("harbour")
        starts = [a.headers.get("x-cortex-start") for a in (cold, warm, alias)]
        step.saw = f"{starts}, anthropic {anthropic.status_code}, llama.cpp {llama.status_code}"
        step.check(whole(cold, stream=False) and whole(warm, stream=True) and whole(alias, stream=False), "not whole")
        step.check(starts == ["cold", "hot", "hot"], "not cold, then hot")
        step.check(anthropic.json()["content"][0]["text"] and whole(llama, stream=False), "no words")
    with f.report.step("a function too big for one host lands on the other") as step:
        answer = f.ask("t/big")
        step.saw = f"{answer.status_code}, on {list(f.where('t/big').values())}"
        step.check(list(f.where("t/big").values()) == ["large"], "not on the large host")
    with f.report.step("eviction on both hosts") as step:
        step.check(whole(f.ask("t/two"), stream=False), "t/two did not answer")
        step.check(whole(f.ask("t/bigger"), stream=False), "t/bigger did not answer")
        until(lambda: not f.where("t/big"), within_s=30, what="t/big left")
        step.saw = (
            f"one {f.where('t/one')}, two {f.where('t/two')}, big {f.where('t/big')}, bigger {f.where('t/bigger')}"
        )
        step.check(not f.where("t/big") and list(f.where("t/bigger").values()) == ["large"], "t/big was not evicted")
        step.check(list(f.where("t/two").values()) == ["small"], "t/two is not on the small host")


def restarts(f: Fleet) -> None:
    """What operators and power do to machines, under load."""
    with f.report.step("systemctl restart of every agent under load") as step:
        undisturbed(f, step, lambda: [h.run("systemctl restart cortex-agent") for h in f.members])
    with f.report.step("systemctl restart of the router under load") as step:
        undisturbed(f, step, lambda: f.front.run("systemctl restart cortex-router", timeout_s=120))
    with f.report.step("a stream of 40 s outlives its router without delaying the restart") as step:
        handed_over(f, step)
    with f.report.step("systemctl restart of Redis under load") as step:
        undisturbed(f, step, lambda: f.front.run("systemctl restart cortex-redis"))
    with f.report.step("reboot of a host: others serve, it comes back by itself") as step:
        before = {i for i, (host, _) in f.instances().items() if host == "small"}
        f.small.reboot()
        answer = f.ask("t/load")
        step.check(whole(answer, stream=False), f"not served meanwhile: {answer.status_code} {answer.text[:200]}")
        f.small.await_up()
        view = "its agent is back and holds nothing of what it held"
        took = until(lambda: "small" in f.hosts() and not before & f.instances().keys(), within_s=90, what=view)
        step.saw = f"t/load meanwhile on {list(f.where('t/load').values())}; back {took:.1f} s after it was up"
    with f.report.step("power cut of the host that serves: the next request is answered by another") as step:
        (victim,) = {h for h in f.members if h.name in f.where("t/load").values()} or {f.large}
        victim.cut_power()
        began = time.monotonic()
        answer = f.ask("t/load")
        took = time.monotonic() - began
        step.check(whole(answer, stream=False), f"not served: {answer.status_code} {answer.text[:200]}")
        step.saw = f"{victim.name} cut; answered after {took:.1f} s by {list(f.where('t/load').values())}"
        victim.start()
        victim.await_up()
        until(lambda: victim.name in f.hosts(), within_s=90, what=f"{victim.name} is seen again")


def rotated(f: Fleet) -> None:
    """Another token for routers and agents."""
    with f.report.step("the fleet's token is changed under load, without a restart") as step:
        (old,) = tokens(f.small)
        undisturbed(f, step, lambda: f.deployment.run("rotate-token"))
        lines = [tokens(h) for h in (f.front, *f.members)]
        step.check(
            all(len(t) == 2 and t == lines[0] and t[1] == old for t in lines), "not both are accepted everywhere"
        )
    with f.report.step("the old one is forgotten, but not while something runs under it") as step:
        refused(f, step, "t/load", "rotate-token", "--finish")
        f.front.run("systemctl stop cortex-redis")
        until(lambda: not f.knows(), within_s=60, what="the router has no Redis")
        refused(f, step, "start Redis", "rotate-token", "--finish")
        f.front.run("systemctl start cortex-redis")
        until(lambda: f.knows() and len(f.hosts()) == len(f.members), within_s=60, what="every host reports again")
        f.small.run("systemctl stop cortex-agent.socket cortex-agent")
        until(lambda: "small" not in f.hosts(), within_s=60, what="small is silent")
        refused(f, step, "host small does not report", "rotate-token", "--finish")
        f.small.run("systemctl start cortex-agent.socket cortex-agent")
        until(lambda: "small" in f.hosts(), within_s=60, what="small reports again")
        for function in {i["id"] for i in f.rows().values() if i["instances"]}:
            f.cool(function)
        until(lambda: not f.instances(), within_s=60, what="nothing runs")
        f.deployment.run("rotate-token", "--finish")
        lines = [tokens(h) for h in (f.front, *f.members)]
        step.check(all(len(t) == 1 and t[0] != old for t in lines), "the old one is still accepted")
        step.check(whole(f.ask("t/load"), stream=False), "nothing is served under the new one")
        step.saw = "refused while t/load ran, without Redis, and while small was silent; then one token everywhere"


def joins(f: Fleet) -> None:
    """A host more, the catalogue, a host less."""
    with f.report.step("a host added to the inventory joins") as step:
        f.members[f.late] = GB24
        f.deployment.write(f.front, f.members)
        f.deployment.run("certificates")
        services = "systemctl show --value -p MainPID cortex-agent cortex-jobs"
        running = f.small.says(services)
        changed = f.deployment.run("deploy", "-e", f"cortex_version={f.first}")
        step.saw = f"changed {changed}; seen {sorted(f.hosts())}"
        step.check("late" in f.hosts(), "it is not seen")
        step.check(changed["small"] == 2, "more than the firewall of a host that was there already was changed")
        step.check(f.small.says(services) == running, "a host that was there already was restarted")
    with f.report.step("models.toml alone, in seconds; what did not change keeps running") as step:
        f.ask("t/load")
        before = f.instances()
        f.catalogue(fake("t/new", vram_mb=1000))
        began = time.monotonic()
        f.deployment.run("models")
        took = time.monotonic() - began
        answer = f.ask("t/new")
        step.saw = f"pushed in {took:.1f} s; the new function answers {answer.status_code}"
        step.check(whole(answer, stream=False), "the new function does not answer")
        step.check(before.items() <= f.instances().items(), "an instance was lost")
    with f.report.step("a host deleted from the inventory is drained by the next deploy, under load") as step:
        for name in ("t/bigger", "t/one", "t/two"):  # they fill the fleet: one of the last two is on the host
            step.check(whole(f.ask(name), stream=False), f"{name} did not answer")
        (there,) = [n for n in ("t/one", "t/two") if "late" in f.where(n).values()]
        del f.members[f.late]
        f.deployment.write(f.front, f.members)
        loaded(
            f, step, there, lambda: f.deployment.run("deploy", "--limit", "front", "-e", f"cortex_version={f.first}")
        )
        step.saw += f"; {there} now on {list(f.where(there).values())}"
        step.check("late is no longer in the inventory" in f.deployment.output(), "the deployment does not say so")
        step.check("late" not in f.where(there).values(), "it still serves")
        until(lambda: "late" not in f.hosts(), within_s=30, what="the record is closed to it")
    with f.report.step("listed again, it takes new work again") as step:
        f.members[f.late] = GB24
        f.deployment.write(f.front, f.members)
        f.deployment.run("deploy", "--limit", "front,late", "-e", f"cortex_version={f.first}")
        step.saw = f"cordoned: {f.hosts()['late']['cordoned']}"
        step.check(not f.hosts()["late"]["cordoned"], "it takes no new work")
    with f.report.step("a host is drained and removed under load; nothing is lost, nothing is left") as step:
        loaded(f, step, "t/load", lambda: f.deployment.run("undeploy", "--limit", "late"))
        del f.members[f.late]
        f.deployment.write(f.front, f.members)
        until(lambda: "late" not in f.hosts(), within_s=30, what="late is gone")
        left = left_on(f.late)
        step.check(not left, f"left on it: {left}")


def upgrades(f: Fleet) -> None:
    """Another build and back, under load, each continuing where an earlier run was interrupted."""
    upgrade = ["-e", f"cortex_version={f.second}"]
    with f.report.step("a version that is none is refused, and a rollback before the switch changes nothing") as step:
        refused(f, step, "cortex_version is empty", "deploy", "-e", "cortex_version=")
        f.deployment.run("deploy", *upgrade, "--tags", "prepare")
        changed = f.deployment.run("rollback", "--limit", "small")
        step.saw = f"rollback changed {changed}"
        step.check(not any(changed.values()), "something was changed")
    # As after an interruption between the unit and the restart.
    f.small.run(f"sed -i 's/{f.first}/{f.second}/' /etc/systemd/system/cortex-agent.service")
    for what, command, arguments, wanted in (
        ("rolling upgrade to another build under load", "deploy", upgrade, f.second),
        ("rollback of one host, and then", "rollback", ["--limit", "small"], ""),
        ("rollback under load", "rollback", [], f.first),
    ):
        with f.report.step(what) as step:
            undisturbed(f, step, lambda c=command, a=arguments: f.deployment.run(c, *a))  # type: ignore[misc]
            versions = {h["version"] for h in f.hosts().values()} | {
                f.front.says("/usr/local/bin/cortex --version").split()[-1]
            }
            step.saw += f"; versions {versions}"
            step.check(versions == ({wanted} if wanted else {f.first, f.second}), "not where it should be")
            for host in (f.front, *f.members):
                folders = set(host.says("ls -A /opt/cortex").split())
                step.check(folders == {f.first, f.second, "current", "previous"}, f"on {host.name}: {folders}")


def undeploy(f: Fleet) -> None:
    """And back to nothing."""
    with f.report.step("fleet-status") as step:
        f.deployment.run("status")
        step.check(f.deployment.output().count("agent active") == 2, "not both agents are active")
    with f.report.step("undeploy leaves nothing, also on a host that was off and is undeployed later") as step:
        f.small.cut_power()
        refused(f, step, "unreachable=1", "undeploy")
        left = {h.name: left_on(h) for h in (f.front, f.large)}
        f.small.start()
        f.small.await_up()
        f.deployment.run("undeploy")
        left["small"] = left_on(f.small)
        step.saw = f"left: {left}"
        step.check(not any(left.values()), "something is left")


FIRST: tuple[Callable[..., Any], ...] = (hosts_up, deploy)
STEPS: tuple[Callable[..., Any], ...] = (
    hosts_up,
    deploy,
    again,
    closed,
    monitored,
    requests,
    restarts,
    rotated,
    joins,
    upgrades,
    undeploy,
)


if __name__ == "__main__":
    sys.exit(program.run(main))
