"""Builds a wheelhouse: cortex from this checkout and its dependencies, as wheels with hashes.

Hosts install from it without an index (`--no-index --require-hashes`), so they run what was tested, and air-gapped
hosts need nothing else. A build is named after its commit, `0.1.0+g1a2b3c4`, and after uncommitted changes; a name is
never built twice. Dependencies come from `uv.lock` only.

    dist/wheelhouse/0.1.0+g1a2b3c4.tar     the files for a host: wheels, requirements.txt, the installer, the SBOM
    dist/wheelhouse/latest                 the name of the last build
    dist/wheelhouse/wheels/                a cache of the wheels that the last build needs

The last KEEP_BUILDS stay. An older one is built again from its commit.
"""

import argparse
import hashlib
import re
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from deploy.release import bill_of_materials, run

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12")
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64", "manylinux_2_34_x86_64")
KEEP_BUILDS = 5
"""How many builds stay in the folder, the last used ones: each has some 100 MiB."""


def main() -> None:
    """Build the wheelhouse of this checkout unless it exists, and print its name."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=ROOT / "dist" / "wheelhouse")
    options.add_argument("--python", action="append", help=f"Python of the hosts; may be repeated [default: {PYTHONS}]")
    options.add_argument("--platform", action="append", help="platform of the hosts in pip's form [default: x86_64]")
    options.add_argument("--label", help="name of the build instead of the commit")
    arguments = options.parse_args()
    version = f"{_declared_version()}+{arguments.label or _label()}"
    build(version, arguments.out, arguments.python or list(PYTHONS), arguments.platform or list(PLATFORMS))
    (arguments.out / "latest").write_text(version + "\n")
    for tar in remove_old_builds(arguments.out):
        print(f"wheelhouse: removed {tar.name}: the last {KEEP_BUILDS} builds stay", file=sys.stderr)
    print(version)


def build(version: str, out: Path, pythons: list[str], platforms: list[str]) -> Path:
    """Return the tar file of a version; build it if it is missing."""
    tar = out / f"{version}.tar"
    if tar.exists():
        tar.touch()  # used last
        return tar
    cache = out / "wheels"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        folder = Path(scratch)
        own_wheel = _own_wheel(version, folder)
        requirements = _requirements()
        for python in pythons:
            _fetch(requirements, folder, cache, python, platforms)
        own = f"cortex=={version} --hash=sha256:{hashlib.sha256(own_wheel.read_bytes()).hexdigest()}\n"
        (folder / "requirements.txt").write_text(requirements + own)
        bill_of_materials(folder / "cortex.cdx.json", "--group", "installer")
        part = folder / "part.tar"
        with tarfile.open(part, "w") as archive:  # wheels are compressed already
            wheels = _required_wheels(requirements, cache)
            for path in (folder / "requirements.txt", folder / "cortex.cdx.json", own_wheel, *wheels):
                archive.add(path, path.name)
        part.replace(tar)
    for wheel in {*cache.glob("*.whl")}.difference(wheels):
        wheel.unlink()
    return tar


def remove_old_builds(out: Path) -> list[Path]:
    """Remove all builds but those used last; return the removed ones."""
    builds = sorted(out.glob("*.tar"), key=lambda tar: tar.stat().st_mtime, reverse=True)
    old = builds[KEEP_BUILDS:]
    for tar in old:
        tar.unlink()
    return old


def _own_wheel(version: str, folder: Path) -> Path:
    """Build cortex from all files that git does not ignore, with the build's version."""
    source = folder / "source"
    for name in _git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    project = source / "pyproject.toml"
    project.write_text(
        re.sub(r'^version = ".*"$', f'version = "{version}"', project.read_text(), count=1, flags=re.MULTILINE)
    )
    run("uv", "build", "--quiet", "--wheel", "--out-dir", str(folder / "own"), str(source))
    (wheel,) = (folder / "own").glob("*.whl")
    return wheel


def _requirements() -> str:
    """Return the requirements of cortex and its installation from the lock file, with hashes."""
    return run(
        "uv", "export", "--quiet", "--locked", "--no-dev", "--group", "installer", "--no-emit-project", "--no-header",
        "--no-annotate", "--format", "requirements.txt", "--project", str(ROOT),
    )  # fmt: skip


def _fetch(requirements: str, scratch: Path, out: Path, python: str, platforms: list[str]) -> None:
    # pip evaluates markers with this Python's patch level, and a host may have another: fetch for all patch levels.
    file = scratch / "fetch.txt"
    file.write_text(re.sub(r" ; (python_full_version [^ ]+ '[^']+')(?= \\)", "", requirements))
    targets = [f for p in platforms for f in ("--platform", p)]
    run(
        "uv", "run", "--quiet", "--no-project", "--with", "pip", "--python", sys.executable, "python", "-m", "pip",
        "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "--only-binary", ":all:",
        "--python-version", python, "--implementation", "cp", "--abi", f"cp{python.replace('.', '')}", "--abi", "abi3",
        "--abi", "none", *targets, "--find-links", str(out), "--dest", str(out), "--requirement", str(file),
    )  # fmt: skip


def _required_wheels(requirements: str, folder: Path) -> list[Path]:
    """Return the wheels of a folder that the requirements name, by name and version."""
    required = {
        (m[1].lower().replace("-", "_").replace(".", "_"), m[2])
        for m in re.finditer(r"^([\w.-]+)==([^\s;\\]+)", requirements, re.MULTILINE)
    }
    wheels = []
    for wheel in sorted(folder.glob("*.whl")):
        name, version, *_ = wheel.name.split("-")
        if (name.lower().replace(".", "_"), version) in required:
            wheels.append(wheel)
    return wheels


def _declared_version() -> str:
    match = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert match is not None
    return match[1]


def _label() -> str:
    """Return a name for the commit and the differences from it."""
    difference = _git("diff", "HEAD", "--binary") + "".join(
        f"{name}\0{(ROOT / name).read_bytes()!r}"
        for name in sorted(_git("ls-files", "-z", "--others", "--exclude-standard").split("\0"))
        if name and (ROOT / name).is_file()
    )
    commit = "g" + _git("rev-parse", "--short=8", "HEAD").strip()
    return f"{commit}.d{hashlib.sha256(difference.encode()).hexdigest()[:8]}" if difference else commit


def _git(*arguments: str) -> str:
    return run("git", "-C", str(ROOT), *arguments)


if __name__ == "__main__":
    main()
