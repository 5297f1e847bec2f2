"""What a check of `cortex doctor` results in."""

from typing import Literal

from msgspec import Struct


class Finding(Struct, frozen=True):
    """The result of a check. `do` is the suggested fix; empty if there is no problem."""

    level: Literal["ok", "warning", "problem"]
    about: str
    text: str
    do: str = ""
