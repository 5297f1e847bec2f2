"""What the roles do on a machine that already has versions: on this machine, in folders, without systemd.

Each case is a machine of one inventory, so that they run at a time. `prepare` and `switch` are the two steps of a
deployment in which it may be interrupted.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.linted import ROOT

# The machines are deployed to once.
pytestmark = [pytest.mark.long, pytest.mark.timeout(300), pytest.mark.xdist_group("roles")]

OLD, GOOD, BAD = "0.1.0+old", "0.1.0+good", "0.1.0+bad"
# Each in a loop of one: otherwise Ansible gives the first machine's file to all.
STEPS = [
    {
        "ansible.builtin.include_role": {"name": "cortex", "tasks_from": "{{ step }}.yml"},
        "loop": f"{{{{ steps[{n}:{n + 1}] }}}}",
        "loop_control": {"loop_var": "step"},
    }
    for n in range(2)
]
REASON = {"content": "{{ ansible_failed_result.msg }}", "dest": "{{ here }}/refused"}
STALE = {"content": "{{ cortex_stale | join(' ') }}", "dest": "{{ here }}/stale"}
STARTED_FROM = {"a.socket": ["{{ here }}/a"], "a.service": ["{{ here }}/b", "{{ here }}/c"]}
PLAYBOOK = [
    {
        "hosts": "all",
        "connection": "local",
        "gather_facts": False,
        "vars": {"ansible_facts": {"os_family": "Debian"}},
        "tasks": [
            {"block": STEPS, "rescue": [{"ansible.builtin.copy": REASON}]},
            {"ansible.builtin.copy": STALE, "when": "cortex_stale is defined"},
        ],
    }
]


def play(folder: Path, machines: dict[str, dict[str, Any]], **variables: object) -> None:
    """Run the steps of each machine: one run, as one `just deploy` or `just rollback` is."""
    (folder / "playbook.json").write_text(json.dumps(PLAYBOOK))
    inventory = {
        "all": {"hosts": machines},
        **{name: {"hosts": dict.fromkeys(list(machines)[:1])} for name in ("redis", "routers")},
        "agents": {"hosts": dict.fromkeys(machines)},
    }
    for name in machines:
        (folder / name / "etc").mkdir(parents=True, exist_ok=True)
    (folder / "inventory.json").write_text(json.dumps(inventory))
    common = {
        "here": f"{folder}/{{{{ inventory_hostname }}}}",
        "cortex_prefix": "{{ here }}/opt", "cortex_etc": "{{ here }}/etc", "cortex_command": "{{ here }}/command",
        "cortex_python": sys.executable, "ansible_python_interpreter": sys.executable,
        "cortex_wheelhouse": str(folder), "cortex_fleet_token": "t" * 32, "cortex_redis_password": "p" * 16,
        "cortex_redis_admin_password": "a" * 16, **variables,
    }  # fmt: skip
    done = subprocess.run(
        ["ansible-playbook", "-i", str(folder / "inventory.json"), str(folder / "playbook.json"),
         "-e", json.dumps(common)],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "LC_ALL": "C.UTF-8", "ANSIBLE_PIPELINING": "1"},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


def has(folder: Path, current: str, previous: str, *versions: str) -> None:
    """Give a machine versions."""
    for version in versions or (OLD, GOOD, BAD):
        env = folder / "opt" / version
        (env / "bin").mkdir(parents=True)
        (env / "bin/cortex").touch()
        (env / ".complete").touch()
    for link, version in (("current", current), ("previous", previous)):
        (folder / "opt" / link).symlink_to(folder / "opt" / version)


def links(folder: Path) -> tuple[str, str]:
    """Return a machine's versions: the current one, and the one to return to."""
    return (folder / "opt/current").readlink().name, (folder / "opt/previous").readlink().name


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Machines after three runs of a deployment."""
    folder = tmp_path_factory.mktemp("machines")
    whole = ["version", "switch"]
    for name in ("upgraded", "waiting"):
        has(folder / name, GOOD, OLD)
    for name in ("same", "other"):
        for file in "abc":
            _fill(folder / name, file)

    # An upgrade that ends early.
    play(
        folder,
        {
            "upgraded": {"steps": whole, "cortex_version": BAD},
            "waiting": {"steps": whole[:1], "cortex_version": BAD},
            "same": {"steps": ["stale"], "cortex_started_from": STARTED_FROM},
        },
    )
    (folder / "links").write_text(repr([links(folder / n) for n in ("upgraded", "waiting")]))
    (folder / "stale-at-first").write_text((folder / "same/stale").read_text())
    # A rollback that ends early.
    play(
        folder,
        {
            "upgraded": {"steps": whole, "cortex_rollback": True},
            **{n: {"steps": ["started"], "cortex_started_from": STARTED_FROM} for n in ("same", "other")},
        },
    )
    (folder / "other/a").write_text("changed")
    (folder / "other/c").write_text("changed")
    _fill(folder / "half/opt" / GOOD / "lib", "left.py")
    _wheelhouse(folder, GOOD)
    has(folder / "many", "0.1.0+1", "0.1.0+0", *(f"0.1.0+{n}" for n in range(6)))
    for n in range(6):
        os.utime(folder / "many/opt" / f"0.1.0+{n}" / ".complete", (n, n))
    for name in ("empty", "link"):
        _fill(folder / name / "opt" / GOOD, "kept")
    play(
        folder,
        {
            **{n: {"steps": whole, "cortex_rollback": True} for n in ("upgraded", "waiting")},
            **{n: {"steps": ["stale"], "cortex_started_from": STARTED_FROM} for n in ("same", "other")},
            "half": {"steps": ["version"], "cortex_version": GOOD},
            "many": {"steps": whole, "cortex_version": "0.1.0+1"},
            "empty": {"steps": ["checks", "version"], "cortex_version": ""},
            "link": {"steps": whole, "cortex_version": "previous"},
            "twin": {"steps": ["checks"], "cortex_version": GOOD, "ansible_host": "10.0.0.1"},
            "twin-2": {"steps": [], "ansible_host": "10.0.0.1", "cortex_name": "twin"},
        },
    )
    return folder


def _fill(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()


def _wheelhouse(folder: Path, version: str) -> None:
    """Write a wheelhouse whose installer makes a `cortex` and nothing else."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        program = f"{folder}/half/opt/{version}/bin/cortex"
        archive.writestr("uv-1.data/scripts/uv", f"#!/bin/sh\ncp /bin/true {program}\n")
    with tarfile.open(folder / f"{version}.tar", "w") as tar:
        for name, content in (
            ("uv-1.whl", wheel.getvalue()),
            ("requirements.txt", sha256(wheel.getvalue()).hexdigest().encode()),
            ("cortex.cdx.json", b"{}"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_an_upgrade_that_stopped_early_has_noted_everywhere_what_to_return_to(machines: Path) -> None:
    assert (machines / "links").read_text() == repr([(BAD, GOOD), (GOOD, GOOD)])


def test_a_rollback_that_is_run_again_ends_with_the_version_before_on_every_machine(machines: Path) -> None:
    assert [links(machines / n) for n in ("upgraded", "waiting")] == [(GOOD, GOOD)] * 2


def test_the_version_to_return_to_is_not_cleared_away(machines: Path) -> None:
    left = {p.parent.name for p in (machines / "many/opt").glob("0*/.complete")}

    assert left == {"0.1.0+0", "0.1.0+1", "0.1.0+3", "0.1.0+4", "0.1.0+5"}


def test_an_installation_that_was_interrupted_starts_anew(machines: Path) -> None:
    env = machines / "half/opt" / GOOD

    assert (env / ".complete").exists() and not (env / "lib/left.py").exists()


def test_a_service_starts_anew_if_its_files_are_not_those_of_its_last_start(machines: Path) -> None:
    stale = [
        path.read_text() for path in (machines / "stale-at-first", machines / "same/stale", machines / "other/stale")
    ]

    # Before it is noted, a listener stays as it is: clients would be refused.
    assert stale == ["a.service", "", "a.socket a.service"]


@pytest.mark.parametrize(
    ("machine", "reason"),
    [("empty", "cortex_version is empty"), ("link", "cortex_version is 'previous', which is no version")],
)
def test_what_is_no_version_is_refused_and_nothing_is_removed(machine: str, reason: str, machines: Path) -> None:
    assert reason in (machines / machine / "refused").read_text()
    assert (machines / machine / "opt" / GOOD / "kept").exists()


def test_a_machine_that_is_listed_twice_is_refused(machines: Path) -> None:
    assert "has cortex_name twin and cortex_address 10.0.0.1." in (machines / "twin/refused").read_text()
