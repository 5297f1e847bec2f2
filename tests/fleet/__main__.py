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

import httpx

from tests.fleet.load import Load, ask, ask_as_anthropic, whole
from tests.fleet.machines import NETWORK, TOOLS, Host, Machines, machines, until
from tests.fleet.playbook import Deployment, build
from tests.fleet.report import Report, Step
from tests.support.catalogues import aliases, entry, fake

MOST_S = 30 * 60
GB24: list[dict[str, object]] = [{"name": "pretend 24 GB", "vram_mb": 24576}]
GB80: list[dict[str, object]] = [{"name": "pretend 80 GB", "vram_mb": 81920}]
SMALL = {"vram_mb": 14000, "idle_after_s": 3600}
BIG = {"vram_mb": 70000, "idle_after_s": 3600}


class Fleet:
    """What the steps work on."""

    def __init__(self, hosts: Machines, report: Report) -> None:
        self.machines, self.report = hosts, report
        self.front, self.small, self.large, self.late = (hosts.add(n) for n in ("front", "small", "large", "late"))
        self.deployment = Deployment(hosts.folder / "deployment", hosts.key)
        self.url = f"http://{self.front.address}:31313"
        self.members: dict[Host, list[dict[str, object]]] = {self.small: GB24, self.large: GB80}
        self.first = self.second = self.key = ""

    def catalogue(self, *more: str) -> None:
        """Write models.toml."""
        self.deployment.models.write_text(
            "\n".join(
                [
                    entry("cortex/harbour", engine="llamacpp", source="demo:harbour", context=2048, idle_after_s=3600),
                    fake("t/load", "--tps", "20", "--tokens", "30", vram_mb=4000, target_concurrency=64),
                    fake("t/one", **SMALL),
                    fake("t/two", **SMALL),
                    fake("t/big", **BIG),
                    fake("t/bigger", **BIG),
                    *more,
                    aliases({"harbour": "cortex/harbour", "one": "t/one"}),
                ]
            )
        )  # fmt: skip

    def rows(self) -> dict[str, Any]:
        """Return every function as the router lists it."""
        answer = httpx.get(
            f"{self.url}/admin/functions", headers={"authorization": f"Bearer {self.key}"}, timeout=30, trust_env=False
        )
        return {row["id"]: row for row in answer.json()["functions"]}

    def hosts(self) -> dict[str, Any]:
        """Return every live host as the router lists it."""
        answer = httpx.get(
            f"{self.url}/admin/hosts", headers={"authorization": f"Bearer {self.key}"}, timeout=30, trust_env=False
        )
        return {host["name"]: host for host in answer.json()["hosts"]}

    def ask(self, model: str, *, stream: bool = False) -> httpx.Response:
        """Ask a model one thing, with the operator's key."""
        return ask(self.url, model, stream=stream, key=self.key)

    def where(self, function: str) -> dict[str, str]:
        """Return the function's serving instances, and on which host each is."""
        return {i["id"]: i["host"] for i in self.rows()[function]["instances"] if i["state"] == "ready"}

    def instances(self) -> dict[str, tuple[str, int]]:
        """Return host and process of every instance that serves."""
        placed = [i for row in self.rows().values() for i in row["instances"]]
        return {i["id"]: (i["host"], i["pid"]) for i in placed if i["state"] == "ready"}


def main() -> int:
    """Run it all; return the exit code."""
    missing = [t for t in TOOLS if not shutil.which(t)]
    if os.geteuid() or missing:
        print(f"test-fleet needs root, and: apt-get install debootstrap systemd-container openssh-client iproute2 "
              f"nftables (missing: {', '.join(missing) or 'nothing'})", file=sys.stderr)  # fmt: skip
        return 2
    signal.signal(signal.SIGALRM, _too_long)
    signal.signal(signal.SIGTERM, _too_long)
    signal.alarm(MOST_S)
    report = Report()
    try:
        with machines() as hosts:
            chosen = [s for name in sys.argv[1:] for s in STEPS if s.__name__ == name]
            for step in (*FIRST, *chosen) if chosen else STEPS:
                if step is hosts_up:
                    fleet = hosts_up(hosts, report)
                else:
                    step(fleet)
            if os.environ.get("CORTEX_FLEET_KEEP"):
                signal.alarm(0)
                input(f"fleet: it stays until Enter is pressed; ssh -i {hosts.key} root@{NETWORK}.11 … ")
    except (Exception, KeyboardInterrupt) as error:  # the table is printed whatever happened
        print(f"fleet: ended early: {type(error).__name__}: {error}", file=sys.stderr)
        report.steps.append(Step(f"ended early: {type(error).__name__}"))
    report.print()
    return 0 if report.held else 1


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt("the time is up, or somebody asked for the end")  # no step takes it for its own


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
        changed = f.deployment.run("deploy", "-e", f"cortex_version={f.first}")
        f.key = f.front.says("cat /etc/cortex/operator.key")
        step.saw = f"changed {changed}; {_answer(f)}"
        step.check(set(f.hosts()) == {"small", "large"}, "not both hosts are seen")


def again(f: Fleet) -> None:
    """The same once more, and what would be."""
    with f.report.step("deploy again: nothing changes") as step:
        changed = f.deployment.run("deploy", "-e", f"cortex_version={f.first}")
        step.saw = f"changed {changed}"
        step.check(not any(changed.values()), "something changed")
    with f.report.step("check mode with another build: says what it would do and does nothing") as step:
        f.deployment.run("deploy", "-e", f"cortex_version={f.second}", "--check", "--diff")
        step.check(f.second in f.deployment.said(), "the diff does not name the build")
        step.check({h["version"] for h in f.hosts().values()} == {f.first}, "something was done")


def closed(f: Fleet) -> None:
    """What is closed to whom."""
    with f.report.step("units: systemd-analyze verify, security scores, users, passwords") as step:
        _units(f, step)
    with f.report.step("the firewall: outsiders reach the router and nothing else") as step:
        open_ = [_reached(a, p) for a, p in ((f.front.address, 31313), (f.front.address, 6380),
                                             (f.small.address, 13131), (f.small.address, 20000))]  # fmt: skip
        step.saw = f"router {open_[0]}, Redis {open_[1]}, agent {open_[2]}, worker {open_[3]}"
        step.check(open_ == ["open", "refused", "refused", "refused"], "not as it should be")


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
        _undisturbed(f, step, lambda: [h.run("systemctl restart cortex-agent") for h in f.members])
    with f.report.step("systemctl restart of the router under load") as step:
        _undisturbed(f, step, lambda: f.front.run("systemctl restart cortex-router", timeout_s=120))
    with f.report.step("systemctl restart of Redis under load") as step:
        _undisturbed(f, step, lambda: f.front.run("systemctl restart cortex-redis"))
    with f.report.step("reboot of a host: others serve, it comes back by itself") as step:
        before = {i for i, (host, _) in f.instances().items() if host == "small"}
        f.small.reboot()
        answer = f.ask("t/load")
        step.check(whole(answer, stream=False), f"not served meanwhile: {answer.status_code} {answer.text[:200]}")
        f.small.await_up()
        seen = "its agent is back and holds nothing of what it held"
        took = until(lambda: "small" in f.hosts() and not before & f.instances().keys(), within_s=90, what=seen)
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


def joins(f: Fleet) -> None:
    """A host more, the catalogue, a host less."""
    with f.report.step("a host added to the inventory joins") as step:
        f.members[f.late] = GB24
        f.deployment.write(f.front, f.members)
        changed = f.deployment.run("deploy", "-e", f"cortex_version={f.first}")
        step.saw = f"changed {changed}; seen {sorted(f.hosts())}"
        step.check("late" in f.hosts(), "it is not seen")
        step.check(changed["small"] == 0, "a host that was there already was changed")
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
    with f.report.step("a host is drained and removed under load; nothing is lost, nothing is left") as step:
        f.late.run("true")
        load = Load(f.url, "t/load", key=f.key)
        with load:
            until(lambda: load.answered > 5, within_s=60, what="load runs")
            f.deployment.run("undeploy", "--limit", "late")
        step.saw = f"{load.answered} answered, lost {dict(load.lost)}"
        step.check(not load.lost, "requests were lost")
        del f.members[f.late]
        f.deployment.write(f.front, f.members)
        until(lambda: "late" not in f.hosts(), within_s=30, what="late is gone")
        left = _left_on(f.late)
        step.check(not left, f"left on it: {left}")


def upgrades(f: Fleet) -> None:
    """Another build and back, under load."""
    for what, command, arguments, wanted in (
        ("rolling upgrade to another build under load", "deploy", ["-e", f"cortex_version={f.second}"], f.second),
        ("rollback under load", "rollback", [], f.first),
    ):
        with f.report.step(what) as step:
            _undisturbed(f, step, lambda c=command, a=arguments: f.deployment.run(c, *a))  # type: ignore[misc]
            versions = {h["version"] for h in f.hosts().values()} | {
                f.front.says("/usr/local/bin/cortex --version").split()[-1]
            }
            step.saw += f"; versions {versions}"
            step.check(versions == {wanted}, "not everywhere")


def undeploy(f: Fleet) -> None:
    """And back to nothing."""
    with f.report.step("fleet-status") as step:
        f.deployment.run("status")
        step.check(f.deployment.said().count("agent active") == 2, "not both agents are active")
    with f.report.step("undeploy leaves nothing") as step:
        f.deployment.run("undeploy")
        left = {h.name: _left_on(h) for h in (f.front, f.small, f.large)}
        step.saw = f"left: {left}"
        step.check(not any(left.values()), "something is left")


FIRST: tuple[Callable[..., Any], ...] = (hosts_up, deploy)
STEPS: tuple[Callable[..., Any], ...] = (hosts_up, deploy, again, closed, requests, restarts, joins, upgrades, undeploy)


def _answer(f: Fleet) -> str:
    said = [line for line in f.deployment.said().splitlines() if '"msg"' in line]
    return said[-1].strip() if said else "no answer shown"


def _undisturbed(f: Fleet, step: Step, act: Callable[[], object]) -> None:
    """Do something under load: nothing is lost, and no instance stops."""
    f.ask("t/load")
    before = f.instances()
    load = Load(f.url, "t/load", key=f.key)
    with load:
        until(lambda: load.answered > 5, within_s=60, what="load runs")
        act()
        answered = load.answered
        until(lambda: load.answered > answered + 5, within_s=60, what="load goes on")
    step.saw = f"{load.answered} answered, lost {dict(load.lost)}, longest {load.longest_s:.1f} s"
    step.check(not load.lost, "requests were lost")
    until(lambda: before.items() <= f.instances().items(), within_s=20, what="every instance goes on")
    step.saw += f"; {len(before)} instances, same processes"


def _reached(address: str, port: int) -> str:
    import socket

    try:
        with socket.create_connection((address, port), timeout=5):
            return "open"
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return str(error)


def _units(f: Fleet, step: Step) -> None:
    for host in (f.front, f.small):
        names = host.says("cd /etc/systemd/system && echo cortex-*.service cortex-*.socket").split()
        units = [n for n in names if "*" not in n]
        verified = host.run(f"cd /etc/systemd/system && systemd-analyze verify {' '.join(units)}", check=False)
        step.check(verified.returncode == 0 and not verified.stderr.strip(), f"verify: {verified.stderr[:300]}")
        for unit in units:
            if unit.endswith(".service"):
                score = host.says(f"systemd-analyze security --no-pager {unit} | tail -1")
                step.saw += (
                    f"{unit.removeprefix('cortex-').removesuffix('.service')} {score.split(': ')[-1].split()[0]}, "
                )
    secret = f.front.says("cat /etc/cortex/redis-router.password")
    shown = f.front.says("cat /proc/[0-9]*/cmdline /etc/systemd/system/cortex-* | tr '\\0' ' '")
    step.check(secret not in shown, "the password of Redis can be read in an argument or a unit")
    elsewhere = f.small.says("cat /etc/cortex/*.password")
    step.check(secret not in elsewhere, "a host that is no router has the routers' password")
    nobody = f.front.run("sudo -u nobody cat /etc/cortex/redis-router.password /etc/cortex/fleet.token", check=False)
    step.check(nobody.returncode != 0 and secret not in nobody.stdout, "anybody may read the secrets")
    step.check(ask(f.url, "t/one").status_code == 401, "the router serves without a key")
    refused = f.front.says(f"redis-cli -h {f.front.address} -p 6380 PING || true")
    step.check("NOAUTH" in refused, f"Redis lets anybody in: {refused}")
    step.saw += "secrets closed"


def _left_on(host: Host) -> list[str]:
    """Return whatever of cortex is on a host."""
    found = host.says(
        "find / -xdev -iname '*cortex*' -not -path '/proc/*' 2>/dev/null; getent passwd | grep cortex; "
        "nft list tables | grep cortex; systemctl list-units --all --no-legend 'cortex*' | cut -c1-80; "
        "ps -eo args | grep [c]ortex | grep -v '^bash -c'; true"
    )
    return found.splitlines()


if __name__ == "__main__":
    sys.exit(main())
