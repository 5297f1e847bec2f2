"""The two sets of settings with which an engine starts: fast for a start that a request waits for, full for serving.

A fast start uses *tricks* that leave out what makes serving faster. Which tricks an engine has depends on its version
and on the function's own arguments: see the engine's module. A trick that failed is switched off for its revision.
"""

import enum


class StartMode(enum.StrEnum):
    """The set of settings with which an instance was started."""

    FAST = "fast"
    """It is ready sooner, and serves more slowly."""
    FULL = "full"

    @classmethod
    def _missing_(cls, value: object) -> "StartMode":
        """Read a mode of a later release as `full`: such an instance is not replaced."""
        return cls.FULL


class Trick(enum.StrEnum):
    """A setting that makes a start faster."""

    EAGER = "eager"
    """No compilation and no graphs. (vLLM's `--enforce-eager`.)"""
    FEW_GRAPHS = "few graphs"
    """Graphs for the smallest batches only: larger batches run without."""
    KNOWN_CACHE = "known cache"
    """The size of the KV cache is given, so the engine measures no memory. It makes serving no slower, so full starts
    use it, too."""
