"""Builds a release from a clean checkout: wheel, source, bill of materials (CycloneDX), and the hashes of all three.

dist/release/cortex-0.1.0-py3-none-any.whl
dist/release/cortex-0.1.0.tar.gz
dist/release/cortex-0.1.0.cdx.json         all packages of uv.lock that it needs, with versions
dist/release/SHA256SUMS                    `sha256sum --check SHA256SUMS`
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Build the release of this checkout, and print the hashes."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=ROOT / "dist" / "release")
    out: Path = options.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    run("uv", "build", "--quiet", "--out-dir", str(out), str(ROOT))
    (out / ".gitignore").unlink(missing_ok=True)
    (wheel,) = out.glob("*.whl")
    bill_of_materials(out / f"{'-'.join(wheel.name.split('-')[:2])}.cdx.json")
    files = sorted(out.iterdir())
    sums = "".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in files)
    (out / "SHA256SUMS").write_text(sums)
    print(sums, end="")


def bill_of_materials(file: Path, *more: str) -> None:
    """Write the bill of materials from `uv.lock`; `more` are options of `uv export` (groups, extras)."""
    run(
        "uv", "export", "--quiet", "--locked", "--no-default-groups", *more, "--format", "cyclonedx1.5",
        "--preview-features", "sbom-export", "--project", str(ROOT), "-o", str(file),
    )  # fmt: skip


def run(*argv: str) -> str:
    """Run a program and return its output; exit if it fails."""
    result = subprocess.run(argv, stdout=subprocess.PIPE, check=False, encoding="utf-8", errors="surrogateescape")
    if result.returncode:
        sys.exit(f"{Path(sys.argv[0]).stem}: `{' '.join(argv[:4])} …` failed with code {result.returncode}")
    return result.stdout


if __name__ == "__main__":
    main()
