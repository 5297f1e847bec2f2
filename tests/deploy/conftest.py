"""What the roles write and decide, for machines of different kinds: rendered once, without any machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
INVENTORY = """
[redis]
box ansible_host=10.0.0.9
[routers]
box
other ansible_host=10.0.0.10
[agents]
box
third ansible_host=10.0.0.11 family=RedHat cortex_tls=true cortex_vllm=auto cortex_nvidia_driver=/proc/version
apart ansible_host=10.0.0.12 cortex_vllm=auto cortex_nvidia_driver=/nowhere cortex_engine_wheels=/srv/wheels
[monitoring]
other
"""
Decided = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `rendered.json`: files of two machines, and what is decided for all. It is their prefix, too."""
    out = tmp_path_factory.mktemp("rendered")
    program = out / "opt" / "0.1.0+test" / "bin" / "cortex"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    inventory = out / "inventory"
    inventory.write_text(INVENTORY)
    variables = {
        "out": str(out), "cortex_prefix": str(out / "opt"), "cortex_version": "0.1.0+test",
        "cortex_redis_password": "p" * 16, "cortex_redis_admin_password": "a" * 16,
        "ansible_python_interpreter": sys.executable, "machine": "agents", "whole": ["box", "third"],
    }  # fmt: skip
    done = subprocess.run(
        ["ansible-playbook", "-i", str(inventory), "--skip-tags", "always", "render.yml", "-e", json.dumps(variables)],
        env={**os.environ, "ANSIBLE_CONFIG": "ansible.cfg", "LC_ALL": "C.UTF-8"},
        cwd=ROOT / "deploy/ansible", capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return out


@pytest.fixture(scope="session")
def written(rendered: Path) -> Path:
    """The files of a machine that is router, host and Redis, and would be the monitoring's, too."""
    return _laid_out(rendered, "box")


@pytest.fixture(scope="session")
def written_tls(rendered: Path) -> Path:
    """The files of a host whose fleet speaks TLS."""
    return _laid_out(rendered, "third")


def _laid_out(rendered: Path, machine: str) -> Path:
    folder = rendered / machine
    folder.mkdir()
    for name, text in json.loads((rendered / "rendered.json").read_text())["files"][machine].items():
        for server in ("/usr/bin/redis-server", "/usr/bin/prometheus"):
            text = text.replace(f"ExecStart={server}", "ExecStart=/bin/true")  # what this machine need not have
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="session")
def decided(rendered: Path) -> Decided:
    """By machine, what is decided by its family and hardware."""
    found: Decided = json.loads((rendered / "rendered.json").read_text())["decided"]
    return found
