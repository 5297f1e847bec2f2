"""Exit codes, the same for every command, and the exception that ends a command with an error."""

import errno

FAILED = 1
"""The command failed: for example a failed start or an invalid file."""
USAGE = 2
"""Invalid usage (click's code)."""
UNREACHABLE = 3
"""No router answers."""
NOT_FOUND = 4
"""The function is not in the catalogue, or no live host has the name."""
INTERRUPTED = 130
"""Ctrl-C."""

HELP = """
Exit codes: 0 done · 1 failed · 2 invalid usage · 3 no router answers ·
4 unknown function or host · 130 interrupted
"""


class Failed(Exception):
    """Ends a command with a message on stderr, a hint, and an exit code.

    Not a click exception: those are printed in a box, which breaks lines that people search for.
    """

    def __init__(self, message: str, *, code: int = FAILED, hint: str = "") -> None:
        super().__init__(f"{message}\n{hint}" if hint else message)
        self.exit_code = code


_NOT_WRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR})
WRITABLE = (
    "Set XDG_STATE_HOME and XDG_CACHE_HOME to folders that this user can write; "
    "cortex.toml has a key for each folder ([agent] state_dir, cache_dir, log_dir)."
)


def is_not_writable(error: OSError) -> bool:
    """Whether a file or folder could not be written, and its path is known."""
    return error.errno in _NOT_WRITABLE and bool(error.filename)
