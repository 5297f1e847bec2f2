"""The clients, pinned, in a cache folder that is made once for each set of pins."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
PINS = ("package.json", "requirements.txt")


def folder() -> Path:
    """Where this set of clients is, or goes."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    pins = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in PINS)).hexdigest()[:12]
    return Path(home) / "cortex-test-clients" / pins


def install() -> Path:
    """Install what is missing and return the folder. Needs npm, uv and their registries the first time."""
    where = folder()
    if (where / "complete").exists():
        return where
    print(f"installing the clients into {where} (about a gigabyte, once)", flush=True)
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    for name in PINS:
        shutil.copy(HERE / name, where)
    npm = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
    subprocess.run(npm, cwd=where, check=True)
    python = where / "python"
    subprocess.run(["uv", "venv", "-q", "--python", "3.11", str(python)], check=True)
    packages = ["uv", "pip", "install", "-q", "--python", str(python), "-r", str(where / "requirements.txt")]
    subprocess.run(packages, check=True)
    (where / "complete").touch()
    return where
