"""Which files of the deployment ansible-lint has passed, at its production profile.

It takes half a minute of CPU, so the tests only hold that it has passed for exactly these files: `just lint-deploy`
runs it, and writes the digest down that `test_lint.py` compares.
"""

import hashlib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent / "deploy" / "ansible"
STAMP = Path(__file__).with_suffix(".sha256")


def digest() -> str:
    """Return the digest of all that is linted, names and contents."""
    said = hashlib.sha256()
    for path in sorted(p for p in ROOT.rglob("*") if p.is_file() and p.suffix != ".md"):
        relative = path.relative_to(ROOT)
        if relative.parts[0] not in ("inventory", ".ansible") and relative.suffix != ".j2":
            said.update(f"{relative}\0".encode() + path.read_bytes() + b"\0")
    return said.hexdigest()


if __name__ == "__main__":
    STAMP.write_text(digest() + "\n")
