"""Where a function's weights are on this host, and how they get here.

`find()` is a quick look, done before a start. `fetch()` is slow, retryable work and runs only in the host's
job worker (`jobs.py`). A `source` is a path on the host, or `demo:<name>` for the small model that cortex
writes itself.
"""

from pathlib import Path

from cortex.functions.names import slug
from cortex.functions.spec import Function
from cortex.platform.bigram import demo_text, write_bigram
from cortex.platform.kept import Weights

DEMO = "demo:"
MIB = 1024 * 1024


class WeightsUnavailable(Exception):
    """The weights cannot be had; the text says what to do."""


def find(function: Function, cache: Path) -> Weights | None:
    """Return the weights if they are on this host, None if they can be fetched.

    Raises WeightsUnavailable when they can be neither found nor fetched.
    """
    if not function.has_weights:
        return Weights("", 0)
    source = function.weights
    if source.startswith(DEMO):
        path = demo_path(source, cache)
        return Weights(str(path), _size_mb(path)) if path.is_file() else None
    if not source.startswith(("/", "~")):
        raise WeightsUnavailable(
            f"'{source}' is not on this host, and weights are not downloaded yet: "
            "put the file on the host and give its path as `source`"
        )
    path = Path(source).expanduser()
    if not path.exists():
        raise WeightsUnavailable(f"the weights {path} are not there")
    try:
        with (next(path.iterdir()) if path.is_dir() else path).open("rb"):
            return Weights(str(path), _size_mb(path))
    except (OSError, StopIteration) as error:
        raise WeightsUnavailable(f"the weights {path} cannot be read: {error or 'no file in it'}") from None


def fetch(source: str, cache: Path) -> None:
    """Bring weights to this host, so that `find()` finds them."""
    if not source.startswith(DEMO):
        raise WeightsUnavailable(f"nothing knows how to fetch '{source}'")
    path = demo_path(source, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bigram(path, demo_text(), name=source.removeprefix(DEMO))


def demo_path(source: str, cache: Path) -> Path:
    """Return where the demo model is kept."""
    return cache / "demo" / f"{slug(source.removeprefix(DEMO))}.gguf"


def _size_mb(path: Path) -> int:
    files = [f for f in path.rglob("*") if f.is_file()] if path.is_dir() else [path]
    return -(-sum(f.stat().st_size for f in files) // MIB)
