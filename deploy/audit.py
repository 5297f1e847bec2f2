"""What cortex is made of: whether the lock file holds, under which licences everything comes, and known holes.

    0   nothing is known against any of it
    1   something is: a package with a known hole, or one without a hash
    3   nobody could be asked for known holes (no network, or an index that does not tell): all else is well

The first two parts need no network. `--hashes` does the first alone.
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
WELL, HOLES, NOT_CHECKED = 0, 1, 3


def main() -> int:
    """Look at all of it; return the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--hashes", action="store_true", help="the lock file alone, without any network")
    only_hashes = options.parse_args().hashes
    bare = unhashed((ROOT / "uv.lock").read_text())
    for line in bare:
        print(f"WITHOUT A HASH: {line}")
    if bare:
        return HOLES
    print("uv.lock: every package that comes from an index has the hash of every file")
    if only_hashes:
        return WELL
    for name, version, terms in licences(list(distributions())):
        print(f"{name:32} {version:16} {terms}")
    code, said = holes(_asked())
    print(said)
    return code


def unhashed(lock: str) -> list[str]:
    """Return the packages of a lock file that somebody could exchange: a file without a hash, or another source.

    One without any file is for no machine of ours, and cannot be installed.
    """
    found = []
    for package in tomllib.loads(lock)["package"]:
        name, source = f"{package['name']} {package.get('version', '')}", package["source"]
        if set(source) & {"editable", "virtual"}:
            continue
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        if "registry" not in source:
            found.append(f"{name}: comes from {', '.join(source)}")
        elif not all(re.fullmatch(r"sha256:[0-9a-f]{64}", f.get("hash", "")) for f in files):
            found.append(name)
    return found


def licences(installed: list[Distribution]) -> list[tuple[str, str, str]]:
    """Return name, version and licence of every package, as the package itself says it."""
    return sorted((d.name, d.version, licence(d)) for d in installed)


def licence(package: Distribution) -> str:
    """Return the licence of a package: its expression, else what its classifiers say, else its own words."""
    said: Any = package.metadata
    classified = [c.rpartition(" :: ")[2] for c in said.get_all("Classifier") or [] if c.startswith("License ::")]
    words = (said.get("License") or "").strip().splitlines()
    return said.get("License-Expression") or ", ".join(classified) or (words[0][:60] if words else "UNKNOWN")


def holes(report: dict[str, Any] | str) -> tuple[int, str]:
    """Return the exit code for a report of pip-audit, and what to say; `report` is a text where there is none."""
    if isinstance(report, str):
        return NOT_CHECKED, f"KNOWN HOLES WERE NOT LOOKED UP: {report}"
    packages = report["dependencies"]
    known = [f"{p['name']} {p['version']}: {v['id']}" for p in packages for v in p.get("vulns", [])]
    skipped = [p for p in packages if "skip_reason" in p]
    if known:
        return HOLES, "KNOWN HOLES:\n" + "\n".join(known)
    if skipped or not packages:
        why = skipped[0]["skip_reason"] if skipped else "the report is empty"
        return NOT_CHECKED, f"KNOWN HOLES WERE NOT LOOKED UP for {len(skipped)} of {len(packages)} packages: {why}"
    return WELL, f"no known hole in any of {len(packages)} packages"


def _asked() -> dict[str, Any] | str:
    """Return what pip-audit reports of the lock file, or why it does not."""
    with tempfile.TemporaryDirectory() as made:
        needed, report = Path(made) / "needed.txt", Path(made) / "report.json"
        export = ["uv", "export", "-q", "--locked", "--no-emit-project", "--no-default-groups", "-o", str(needed)]
        audit = ["uvx", "--quiet", "pip-audit", "--disable-pip", "--require-hashes", "-r", str(needed), "-f", "json"]
        for argv in (export, [*audit, "-o", str(report)]):
            done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
        if not report.exists():
            return (done.stderr.strip().splitlines() or ["pip-audit says nothing"])[-1]
        found: dict[str, Any] = json.loads(report.read_text())
        return found


if __name__ == "__main__":
    sys.exit(main())
