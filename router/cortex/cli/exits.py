"""Exit codes, the same for every command, and the one way a command ends with an error."""

FAILED = 1
"""What was asked for did not come about: a start failed, a file is not right."""
USAGE = 2
"""The command was not understood (click's own code)."""
UNREACHABLE = 3
"""No router answers."""
NOT_FOUND = 4
"""The function is not in the catalogue, or no such host is alive."""
INTERRUPTED = 130
"""Ctrl-C."""

HELP = """
Exit codes: 0 done · 1 it failed · 2 the command was not understood · 3 no router answers ·
4 no such function or host · 130 interrupted
"""


class Failed(Exception):
    """Ends a command with a message on stderr, what to do next, and an exit code.

    It is not click's own exception: those are printed in a box, which breaks lines that people search for.
    """

    def __init__(self, message: str, *, code: int = FAILED, hint: str = "") -> None:
        super().__init__(f"{message}\n{hint}" if hint else message)
        self.exit_code = code
