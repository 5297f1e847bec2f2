"""A release has a bill of materials, the lock file has hashes, and an audit reports what it could not look up."""

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
from deploy.audit import NO_PROBLEM, NOT_CHECKED, VULNERABLE, licences, packages_without_hash, vulnerabilities
from deploy.release import bill_of_materials

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]


def components(file: Path) -> dict[str, str]:
    """Return the packages of a bill of materials, with their versions."""
    bill = json.loads(file.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "cortex"
    return {c["name"]: c["version"] for c in bill["components"]}


def locked(*groups: str) -> dict[str, str]:
    """Return the dependencies in the lock file, with any marker, without using the bill."""
    argv = ["uv", "export", "-q", "--locked", "--no-dev", *groups, "--no-emit-project", "--no-hashes", "--no-annotate"]
    run = subprocess.run([*argv, "--no-header"], cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", run.stdout, re.MULTILINE))


def test_a_release_has_wheel_source_bill_of_materials_and_hashes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "deploy.release", "--out", str(tmp_path / "r")], cwd=ROOT, check=True)
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


def test_the_bill_of_materials_of_a_host_includes_the_installer(tmp_path: Path) -> None:
    bill_of_materials(tmp_path / "bill.json", "--group", "installer")

    assert components(tmp_path / "bill.json") == locked("--group", "installer")
    assert "uv" in components(tmp_path / "bill.json")


def test_the_lock_file_has_a_hash_for_every_file() -> None:
    assert packages_without_hash((ROOT / "uv.lock").read_text()) == []


@pytest.mark.parametrize(
    ("package", "text"),
    [
        ('source = { registry = "https://x" }\nwheels = [{ url = "u" }]', "a 1"),
        ('source = { registry = "https://x" }\nwheels = [{ url = "u", hash = "md5:00" }]', "a 1"),
        ('source = { git = "https://x" }', "a 1: comes from git"),
        ('source = { url = "https://x" }', "a 1: comes from url"),
    ],
)
def test_a_package_without_a_hash_or_from_another_source_is_reported(package: str, text: str) -> None:
    assert packages_without_hash(f'[[package]]\nname = "a"\nversion = "1"\n{package}\n') == [text]


SKIPPED = {"name": "b", "skip_reason": "not found on the index"}
CLEAN = {"name": "a", "version": "1", "vulns": []}
VULNERABLE_PACKAGE = {"name": "c", "version": "2", "vulns": [{"id": "CVE-1"}]}


@pytest.mark.parametrize(
    ("report", "code", "text"),
    [
        ({"dependencies": [CLEAN]}, NO_PROBLEM, "no known vulnerability in any of 1"),
        ({"dependencies": [CLEAN, VULNERABLE_PACKAGE]}, VULNERABLE, "c 2: CVE-1"),
        ({"dependencies": [SKIPPED, VULNERABLE_PACKAGE]}, VULNERABLE, "c 2: CVE-1"),
        ({"dependencies": [CLEAN, SKIPPED]}, NOT_CHECKED, "NOT LOOKED UP for 1 of 2"),
        ({"dependencies": []}, NOT_CHECKED, "NOT LOOKED UP"),
        ("no route to host", NOT_CHECKED, "NOT LOOKED UP: no route to host"),
    ],
)
def test_an_audit_that_could_not_look_up_a_package_never_reports_success(report: Any, code: int, text: str) -> None:
    result = vulnerabilities(report)

    assert result[0] == code
    assert text in result[1]


def test_every_installed_package_has_a_licence() -> None:
    from importlib.metadata import distributions

    text = {name.lower().replace("_", "-"): terms for name, _, terms in licences(list(distributions()))}

    assert {name for name in locked() if text.get(name.lower().replace("_", "-"), "") == "UNKNOWN"} == set()
    assert "MIT" in text["rich"]
