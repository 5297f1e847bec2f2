"""Checks the dependencies: hashes in the lock file, licences, and known vulnerabilities.

    0   no problem
    1   a package has a known vulnerability, or has no hash
    3   known vulnerabilities could not be looked up (no network, or the index does not report them); no other problem

The first two checks need no network. `--hashes` makes the first one only.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NO_PROBLEM, VULNERABLE, NOT_CHECKED = 0, 1, 3


def main() -> int:
    """Run the checks; return the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--hashes", action="store_true", help="check the lock file only, without network")
    only_hashes = options.parse_args().hashes
    without_hash = packages_without_hash((ROOT / "uv.lock").read_text())
    for line in without_hash:
        print(f"WITHOUT A HASH: {line}")
    if without_hash:
        return VULNERABLE
    print("uv.lock: every package from an index has the hash of every file")
    if only_hashes:
        return NO_PROBLEM
    for name, version, terms in licences(list(distributions())):
        print(f"{name:32} {version:16} {terms}")
    code, text = vulnerabilities(_pip_audit())
    print(text)
    return code


def packages_without_hash(lock: str) -> list[str]:
    """Return the packages of a lock file that could be replaced: with a file without a hash, or from another source.

    A package without files is for other platforms and cannot be installed.
    """
    packages = []
    for package in tomllib.loads(lock)["package"]:
        name, source = f"{package['name']} {package.get('version', '')}", package["source"]
        if set(source) & {"editable", "virtual"}:
            continue
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        if "registry" not in source:
            packages.append(f"{name}: comes from {', '.join(source)}")
        elif not all(re.fullmatch(r"sha256:[0-9a-f]{64}", f.get("hash", "")) for f in files):
            packages.append(name)
    return packages


def licences(installed: list[Distribution]) -> list[tuple[str, str, str]]:
    """Return name, version and licence of every package, from its own metadata."""
    return sorted((d.name, d.version, licence(d)) for d in installed)


def licence(package: Distribution) -> str:
    """Return the licence of a package: its expression, its classifiers, or the first line of its licence field."""
    metadata: Any = package.metadata
    classifiers = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier") or [] if c.startswith("License ::")]
    lines = (metadata.get("License") or "").strip().splitlines()
    return metadata.get("License-Expression") or ", ".join(classifiers) or (lines[0][:60] if lines else "UNKNOWN")


def vulnerabilities(report: dict[str, Any] | str) -> tuple[int, str]:
    """Return the exit code and the text for a report of pip-audit, or for the reason why there is none."""
    if isinstance(report, str):
        return NOT_CHECKED, f"KNOWN VULNERABILITIES WERE NOT LOOKED UP: {report}"
    packages = report["dependencies"]
    lines = [f"{p['name']} {p['version']}: {v['id']}" for p in packages for v in p.get("vulns", [])]
    skipped = [p for p in packages if "skip_reason" in p]
    if lines:
        return VULNERABLE, "KNOWN VULNERABILITIES:\n" + "\n".join(lines)
    if skipped or not packages:
        why = skipped[0]["skip_reason"] if skipped else "the report is empty"
        count = f"{len(skipped)} of {len(packages)} packages"
        return NOT_CHECKED, f"KNOWN VULNERABILITIES WERE NOT LOOKED UP for {count}: {why}"
    return NO_PROBLEM, f"no known vulnerability in any of {len(packages)} packages"


def _pip_audit() -> dict[str, Any] | str:
    """Return pip-audit's report on the lock file, or the reason why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        requirements, report = Path(folder) / "requirements.txt", Path(folder) / "report.json"
        export = ["uv", "export", "-q", "--locked", "--no-emit-project", "--no-default-groups", "-o", str(requirements)]
        audit = ["uvx", "--quiet", "pip-audit", "--disable-pip", "--require-hashes", "-r", str(requirements)]
        for argv in (export, [*audit, "-f", "json", "-o", str(report)]):
            run = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
        if not report.exists():
            return (run.stderr.strip().splitlines() or ["pip-audit printed nothing"])[-1]
        decoded: dict[str, Any] = json.loads(report.read_text())
        return decoded


if __name__ == "__main__":
    sys.exit(main())
