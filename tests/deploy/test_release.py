"""A release says what it is made of, and what was locked is what it says; an audit says what it could not look up."""

import hashlib
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from deploy.audit import HOLES, NOT_CHECKED, WELL, holes, licences, unhashed

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]


def components(file: Path) -> dict[str, str]:
    """Return the packages of a bill of materials, with their versions."""
    bill = json.loads(file.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "cortex"
    return {c["name"]: c["version"] for c in bill["components"]}


def locked(*groups: str) -> dict[str, str]:
    """Return what the lock file says is needed, by another way than the bill's: with whatever marker."""
    argv = ["uv", "export", "-q", "--locked", "--no-dev", *groups, "--no-emit-project", "--no-hashes", "--no-annotate"]
    done = subprocess.run([*argv, "--no-header"], cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", done.stdout, re.MULTILINE))


def test_a_release_is_a_wheel_its_source_what_it_is_made_of_and_the_hashes_of_all(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "deploy/release.py", "--out", str(tmp_path / "r")], cwd=ROOT, check=True)
    lines = [line.split() for line in (tmp_path / "r" / "SHA256SUMS").read_text().splitlines()]
    sums = {name: digest for digest, name in lines}
    files = {p.name: p for p in (tmp_path / "r").iterdir() if p.name != "SHA256SUMS"}

    assert {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in files.items()} == sums
    wheel, source, bill = (next(p for n, p in files.items() if n.endswith(e)) for e in (".whl", ".tar.gz", ".cdx.json"))
    assert len(files) == 3
    assert components(bill) == locked()
    assert len(locked()) > 40
    assert "cortex/router/app.py" in zipfile.ZipFile(wheel).namelist()
    with tarfile.open(source) as archive:
        assert any(name.endswith("/platform/cortex/platform/agent/loop.py") for name in archive.getnames())


def test_what_goes_to_a_host_says_what_it_is_made_of_with_the_installer(tmp_path: Path) -> None:
    argv = [sys.executable, "deploy/release.py", "--bill", str(tmp_path / "bill.json")]
    subprocess.run(argv, cwd=ROOT, check=True)

    assert components(tmp_path / "bill.json") == locked("--group", "installer")
    assert "uv" in components(tmp_path / "bill.json")


def test_the_lock_file_holds_a_hash_for_everything() -> None:
    assert unhashed((ROOT / "uv.lock").read_text()) == []


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ('source = { registry = "https://x" }\nwheels = [{ url = "u" }]', "a 1"),
        ('source = { registry = "https://x" }\nwheels = [{ url = "u", hash = "md5:00" }]', "a 1"),
        ('source = { git = "https://x" }', "a 1: comes from git"),
        ('source = { url = "https://x" }', "a 1: comes from url"),
    ],
)
def test_a_package_that_could_be_exchanged_is_named(package: str, said: str) -> None:
    assert unhashed(f'[[package]]\nname = "a"\nversion = "1"\n{package}\n') == [said]


SKIPPED = {"name": "b", "skip_reason": "not found on the index"}
CLEAN = {"name": "a", "version": "1", "vulns": []}
HOLED = {"name": "c", "version": "2", "vulns": [{"id": "CVE-1"}]}


@pytest.mark.parametrize(
    ("report", "code", "said"),
    [
        ({"dependencies": [CLEAN]}, WELL, "no known hole in any of 1"),
        ({"dependencies": [CLEAN, HOLED]}, HOLES, "c 2: CVE-1"),
        ({"dependencies": [SKIPPED, HOLED]}, HOLES, "c 2: CVE-1"),
        ({"dependencies": [CLEAN, SKIPPED]}, NOT_CHECKED, "NOT LOOKED UP for 1 of 2"),
        ({"dependencies": []}, NOT_CHECKED, "NOT LOOKED UP"),
        ("no route to host", NOT_CHECKED, "NOT LOOKED UP: no route to host"),
    ],
)
def test_what_was_not_looked_up_is_never_called_well(report: Any, code: int, said: str) -> None:
    found = holes(report)

    assert found[0] == code
    assert said in found[1]


def test_every_package_here_says_its_licence() -> None:
    from importlib.metadata import distributions

    said = {name.lower().replace("_", "-"): terms for name, _, terms in licences(list(distributions()))}

    assert {name for name in locked() if said.get(name.lower().replace("_", "-"), "") == "UNKNOWN"} == set()
    assert "MIT" in said["rich"]
