"""Which weights a host may load: those inside its roots, and pickles only where the function allows them.

Loading a pickle runs the code in it. Safetensors and GGUF hold numbers only. Paths are resolved first, so no link
leads out of a root.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from cortex.platform.weights.hub import WeightsUnavailable

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
SAFE = frozenset({".safetensors", ".gguf"})
MOST_FILES = 10_000
"""The check stops after this many files: a larger folder is not a model."""


class NotAllowed(WeightsUnavailable):
    """These weights may not be loaded here; the text gives the reason and the setting that allows them."""


def require_inside(path: Path, roots: Sequence[str]) -> None:
    """Raise NotAllowed unless a path is inside one of the roots. No roots means no restriction."""
    if not roots:
        return
    real = path.expanduser().resolve()
    # The root that is a prefix of the path comes first: other roots may be on mounts that do not answer.
    ordered = sorted((Path(root).expanduser() for root in roots), key=lambda root: not path.is_relative_to(root))
    if not any(real.is_relative_to(root.resolve()) for root in ordered):
        raise NotAllowed(f"the weights {path} are outside [agent] weight_roots on this host")


def refuse_pickles(path: Path) -> None:
    """Raise NotAllowed if the engine would load a pickle from this path."""
    pickle = find_pickle(path.rglob("*") if path.is_dir() else [path])
    if pickle is not None:
        raise NotAllowed(
            f"the weights {path} are a pickle ({pickle.name}), and loading a pickle runs its code: use safetensors "
            "or GGUF, or set `allow_pickle = true` if you trust its author"
        )


def find_pickle(files: Iterable[Path]) -> Path | None:
    """Return a pickle that would be loaded, that is, one without a safe file next to it."""
    first = None
    for count, file in enumerate(files):
        if file.suffix in SAFE:
            return None
        if file.suffix in PICKLES and file.name != "training_args.bin" and not _holds_numbers(file):
            first = first or file
        if count > MOST_FILES:
            break
    return first


def _holds_numbers(file: Path) -> bool:
    """Return whether a file cannot be a pickle, whatever its name: CTranslate2's `model.bin` begins with its version,
    a small number of four bytes, and no pickle or archive of one begins with a control character."""
    try:
        with file.open("rb") as opened:
            first, *rest = opened.read(4)
    except (OSError, ValueError):
        return False
    return 0 < first < 0x20 and rest == [0, 0, 0]
