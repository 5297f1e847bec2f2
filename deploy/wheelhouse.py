"""A wheelhouse: cortex as it is in this checkout and everything it needs, as wheels with their hashes.

Hosts install from it with no index at all (`--no-index --require-hashes`), so what was tested is what runs, and
an air-gapped host is like any other. A build is named after its commit, `0.1.0+g1a2b3c4`, and after what is not
committed too; the same name is never built twice. What it needs comes from `uv.lock` alone.

    dist/wheelhouse/0.1.0+g1a2b3c4.tar     what goes to a host: wheels, requirements.txt, the installer, its SBOM
    dist/wheelhouse/latest                 the name of the last build
    dist/wheelhouse/wheels/                everything that was ever fetched, to be fetched once
"""

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12")
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64", "manylinux_2_34_x86_64")
INSTALLER = "uv"


def main() -> None:
    """Build the wheelhouse of this checkout, unless it is there, and say its name."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=ROOT / "dist" / "wheelhouse")
    options.add_argument("--python", action="append", help=f"of the hosts; may be repeated [default: {PYTHONS}]")
    options.add_argument("--platform", action="append", help="of the hosts, as pip names it [default: x86_64]")
    options.add_argument("--label", help="names the build instead of the commit")
    chosen = options.parse_args()
    version = f"{_declared_version()}+{chosen.label or _label()}"
    build(version, chosen.out, chosen.python or list(PYTHONS), chosen.platform or list(PLATFORMS))
    (chosen.out / "latest").write_text(version + "\n")
    print(version)


def build(version: str, out: Path, pythons: list[str], platforms: list[str]) -> Path:
    """Return the tar file of a version; make it when it is not there."""
    tar = out / f"{version}.tar"
    if tar.exists():
        return tar
    fetched = out / "wheels"
    fetched.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        folder = Path(scratch)
        wheel = _own_wheel(version, folder)
        needed = _needed()
        for python in pythons:
            _fetch(needed, folder, fetched, python, platforms)
        own = f"cortex=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
        (folder / "requirements.txt").write_text(needed + own)
        _run(sys.executable, str(ROOT / "deploy" / "release.py"), "--bill", str(folder / "cortex.cdx.json"))
        part = folder / "part.tar"
        with tarfile.open(part, "w") as archive:  # wheels are compressed already
            for path in (folder / "requirements.txt", folder / "cortex.cdx.json", wheel, *_named_in(needed, fetched)):
                archive.add(path, path.name)
        part.replace(tar)
    return tar


def _own_wheel(version: str, folder: Path) -> Path:
    """Build cortex from the files git knows or would take, under the build's own version."""
    source = folder / "source"
    for name in _git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    project = source / "pyproject.toml"
    project.write_text(
        re.sub(r'^version = ".*"$', f'version = "{version}"', project.read_text(), count=1, flags=re.MULTILINE)
    )
    _run("uv", "build", "--quiet", "--wheel", "--out-dir", str(folder / "own"), str(source))
    (wheel,) = (folder / "own").glob("*.whl")
    return wheel


def _needed() -> str:
    """Return what the lock file says cortex and its installation need, with hashes."""
    return _run(
        "uv", "export", "--quiet", "--locked", "--no-dev", "--group", "installer", "--no-emit-project", "--no-header",
        "--no-annotate", "--format", "requirements.txt", "--project", str(ROOT),
    )  # fmt: skip


def _fetch(needed: str, scratch: Path, out: Path, python: str, platforms: list[str]) -> None:
    # pip judges by this Python's patch level what is needed on a host with another: what depends on that is taken too.
    requirements = scratch / "fetch.txt"
    requirements.write_text(re.sub(r" ; (python_full_version [^ ]+ '[^']+')(?= \\)", "", needed))
    targets = [f for p in platforms for f in ("--platform", p)]
    _run(
        "uv", "run", "--quiet", "--no-project", "--with", "pip", "--python", sys.executable, "python", "-m", "pip",
        "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "--only-binary", ":all:",
        "--python-version", python, "--implementation", "cp", "--abi", f"cp{python.replace('.', '')}", "--abi", "abi3",
        "--abi", "none", *targets, "--find-links", str(out), "--dest", str(out), "--requirement", str(requirements),
    )  # fmt: skip


def _named_in(requirements: str, folder: Path) -> list[Path]:
    """Return the wheels of a folder that the requirements name, by name, version and hash."""
    wanted = {
        (m[1].lower().replace("-", "_").replace(".", "_"), m[2])
        for m in re.finditer(r"^([\w.-]+)==([^\s;\\]+)", requirements, re.MULTILINE)
    }
    found = []
    for wheel in sorted(folder.glob("*.whl")):
        name, version, *_ = wheel.name.split("-")
        if (name.lower().replace(".", "_"), version) in wanted:
            found.append(wheel)
    return found


def _declared_version() -> str:
    found = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def _label() -> str:
    """Name the commit, and what is different from it."""
    changed = _git("diff", "HEAD", "--binary") + "".join(
        f"{name}\0{(ROOT / name).read_bytes()!r}"
        for name in sorted(_git("ls-files", "-z", "--others", "--exclude-standard").split("\0"))
        if name and (ROOT / name).is_file()
    )
    commit = "g" + _git("rev-parse", "--short=8", "HEAD").strip()
    return f"{commit}.d{hashlib.sha256(changed.encode()).hexdigest()[:8]}" if changed else commit


def _git(*arguments: str) -> str:
    return _run("git", "-C", str(ROOT), *arguments)


def _run(*argv: str) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=False, encoding="utf-8", errors="surrogateescape")
    if done.returncode:
        sys.exit(f"wheelhouse: `{' '.join(argv[:4])} …` failed with code {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
