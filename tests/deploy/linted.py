"""The digest of the deployment's files that passed ansible-lint at its production profile.

ansible-lint takes half a minute of CPU. So `just lint-deploy` runs it and writes the digest, which `test_lint.py`
compares.
"""

import hashlib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent / "deploy" / "ansible"
STAMP = Path(__file__).with_suffix(".sha256")


def digest() -> str:
    """Return the digest of the names and contents of all linted files."""
    state = hashlib.sha256()
    for path in sorted(p for p in ROOT.rglob("*") if p.is_file() and p.suffix != ".md"):
        relative = path.relative_to(ROOT)
        if relative.parts[0] in ("inventory", ".ansible") or "__pycache__" in relative.parts:
            continue
        if relative.suffix != ".j2":
            state.update(f"{relative}\0".encode() + path.read_bytes() + b"\0")
    return state.hexdigest()


if __name__ == "__main__":
    STAMP.write_text(digest() + "\n")
