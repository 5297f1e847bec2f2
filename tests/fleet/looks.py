"""What steps look at: a fleet under load, its units, what it closes, what is left of it."""

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cortex.platform.keys import HOST_LINE, fleet_mark
from tests.fleet.fleet import Fleet
from tests.fleet.load import Load, ask, whole
from tests.fleet.machines import Host, until
from tests.fleet.playbook import DeployFailed
from tests.fleet.report import Step


def shown(f: Fleet) -> str:
    """Return the answer the deployment ended with."""
    texts = [line for line in f.deployment.output().splitlines() if '"msg"' in line]
    return texts[-1].strip() if texts else "no answer shown"


def undisturbed(f: Fleet, step: Step, act: Callable[[], object]) -> None:
    """Do something under load: nothing is lost, and no instance stops."""
    f.ask("t/load")
    before = f.instances()
    loaded(f, step, "t/load", act)
    until(lambda: before.items() <= f.instances().items(), within_s=20, what="every instance goes on")
    step.saw += f"; {len(before)} instances, same processes"


def started(f: Fleet) -> dict[str, str]:
    """Return an id of the last start of each of cortex's units, by machine and unit."""
    starts: dict[str, str] = {}
    for host in (f.front, *f.members):
        names = host.says("cd /etc/systemd/system && ls -d cortex-*.service cortex-*.socket").split()
        ids = host.says(f"systemctl show --value -p InvocationID {' '.join(names)}").split()
        starts |= {f"{host.name} {name}": id for name, id in zip(names, ids, strict=True)}
    return starts


def loaded(f: Fleet, step: Step, function: str, act: Callable[[], object]) -> None:
    """Do something while clients ask for a function: nothing is lost."""
    load = Load(f.url, function, key=f.key)
    with load:
        until(lambda: load.answered > 5, within_s=60, what="load runs")
        act()
        answered = load.answered
        until(lambda: load.answered > answered + 5, within_s=60, what="load goes on")
    step.saw = f"{load.answered} answered, lost {dict(load.lost)}, longest {load.longest_s:.1f} s"
    step.check(not load.lost, "requests were lost")


def refused(f: Fleet, step: Step, reason: str, command: str, *arguments: str) -> None:
    """See that a command fails and says why."""
    try:
        f.deployment.run(command, *arguments)
    except DeployFailed:
        output = " ".join(f.deployment.output().split())
        step.check(reason in output, f"'{reason}' is not in: {output[-400:]}")
    else:
        step.check(False, f"{command} {' '.join(arguments)} was not refused")


def handed_over(f: Fleet, step: Step) -> None:
    """Restart the router under a long stream: the next one answers meanwhile, and the stream ends well."""
    f.ask("t/long")
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(ask, f.url, "t/long", stream=True, key=f.key, most=800)
        until(lambda: sum(h["in_flight"] for h in f.hosts().values()) == 1, within_s=30, what="the stream runs")
        began = time.monotonic()
        f.front.run("systemctl restart cortex-router", timeout_s=120)
        restarted = time.monotonic() - began
        answer = f.ask("one")
        answered = time.monotonic() - began
        step.check(whole(answer, stream=False) and not stream.done(), "the next router did not answer meanwhile")
        step.check(whole(stream.result(), stream=True), "the stream was cut")
    step.saw = f"restarted in {restarted:.1f} s, answered after {answered:.1f} s, the stream ended whole"


def measured(f: Fleet, question: str) -> Any:
    """Ask Prometheus something, on its machine."""
    url = f"http://127.0.0.1:9090/api/v1/{question}"
    program = f"import urllib.request as u; print(u.urlopen('{url}').read().decode())"
    return json.loads(f.front.says(f'python3 -c "{program}"'))["data"]


def tokens(host: Host) -> list[str]:
    """Return the marks of the fleet tokens that a machine accepts, the one it uses first."""
    lines = host.says("cat /etc/cortex/fleet.token 2>/dev/null || cat /etc/cortex/host.token").split()
    return [line.split(":")[-2] if line.startswith(HOST_LINE) else fleet_mark(line) for line in lines]


def reached(address: str, port: int) -> str:
    """Say whether a port is open to us, who are outside."""

    try:
        with socket.create_connection((address, port), timeout=5):
            return "open"
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return str(error)


def units(f: Fleet, step: Step) -> None:
    """Check what is closed in units, files and servers."""
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
    of_router = "/etc/cortex/redis-router.password /etc/cortex/fleet.token /etc/cortex/metrics.token"
    for user in ("nobody", "cortex"):
        read = f.front.run(f"sudo -u {user} cat {of_router}", check=False)
        step.check(read.returncode != 0 and not read.stdout, f"{user} may read the router's secrets")
    step.check(not f.small.says(f"ls {of_router} 2>/dev/null || true"), "a host that is no router has its secrets")
    runs_as = set(f.front.says("ps -eo user:32,args | grep '[c]ortex router' | cut -d' ' -f1").split())
    step.check(runs_as == {"cortex-router"}, f"the router runs as {runs_as}")
    step.check(ask(f.url, "t/one").status_code == 401, "the router serves without a key")
    ping = f"redis-cli -h {f.front.address} -p 6380 %s PING 2>&1 || true"
    refused, plain = f.front.says(ping % "--tls --cacert /etc/cortex/tls/ca.pem"), f.front.says(ping % "")
    step.check("NOAUTH" in refused, f"Redis accepts clients without a password: {refused}")
    step.check("PONG" not in plain and "NOAUTH" not in plain, f"Redis speaks without TLS: {plain}")
    agents = {h["address"].partition(":")[0] for h in f.hosts().values()}
    step.check(agents == {"https"}, f"agents are reached by {agents}")
    step.saw += "secrets closed, TLS"


def left_on(host: Host) -> list[str]:
    """Return whatever of cortex is on a host."""
    result = host.says(
        "find / -xdev -iname '*cortex*' -not -path '/proc/*' 2>/dev/null; getent passwd | grep cortex; "
        "nft list tables | grep cortex; systemctl list-units --all --no-legend 'cortex*' | cut -c1-80; "
        "ps -eo args | grep [c]ortex | grep -v '^bash -c'; true"
    )
    return result.splitlines()
