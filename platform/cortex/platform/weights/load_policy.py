"""Which weights a host may load: those inside its roots, and none that are programs unless it is allowed.

A pickle runs whatever it says when it is loaded. Safetensors and GGUF hold numbers only. Links are followed before
a path is looked at, so none leads out of a root.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from cortex.platform.weights.hub import WeightsUnavailable

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
SAFE = frozenset({".safetensors", ".gguf"})
MOST_FILES = 10_000
"""A folder with more is not looked through: it is no model."""


class NotAllowed(WeightsUnavailable):
    """These weights may not be loaded here; the text says why, and what would allow it."""


def keep_inside(path: Path, roots: Sequence[str]) -> None:
    """Raise NotAllowed unless a path is inside of one of the roots. Without roots every path may be loaded."""
    if not roots:
        return
    real = path.expanduser().resolve()
    # The root that names the path goes first: others may be on mounts that do not answer.
    likely = sorted((Path(root).expanduser() for root in roots), key=lambda root: not path.is_relative_to(root))
    if not any(real.is_relative_to(root.resolve()) for root in likely):
        raise NotAllowed(f"the weights {path} are outside of [agent] weight_roots on this host")


def refuse_pickles(path: Path) -> None:
    """Raise NotAllowed if what a path holds would be loaded as a pickle."""
    found = pickled(path.rglob("*") if path.is_dir() else [path])
    if found is not None:
        raise NotAllowed(
            f"the weights {path} are a pickle ({found.name}), which runs whatever it holds: take safetensors or "
            "GGUF, or say `allow_pickle = true` if you trust whoever made it"
        )


def pickled(files: Iterable[Path]) -> Path | None:
    """Return a pickle that would be loaded: one where there is nothing safer beside it."""
    first = None
    for count, file in enumerate(files):
        if file.suffix in SAFE:
            return None
        if file.suffix in PICKLES and file.name != "training_args.bin":
            first = first or file
        if count > MOST_FILES:
            break
    return first
