"""Values that are computed once, because a large catalogue is listed again and again.

`Memo`: what follows from a function's entry alone. `NamedMemo`: what follows from several values, of which each name
has one set at a time.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from cortex.functions.spec import Function

T = TypeVar("T")

MOST_KNOWN = 32_768


class Memo(Generic[T]):
    """Calls `work` once for each function, by identity.

    A changed entry is another object, so it is computed anew. Beyond `MOST_KNOWN` functions all values are dropped.
    """

    def __init__(self, work: Callable[[Function], T]) -> None:
        self._work = work
        self._known: dict[int, tuple[Function, T]] = {}
        """By the function's `id()`. The value holds the function, so that no other object gets the same id."""

    def __call__(self, function: Function) -> T:
        """Return the value for a function."""
        known = self._known.get(id(function))
        if known is not None and known[0] is function:
            return known[1]
        value = self._work(function)
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[id(function)] = function, value
        return value


class NamedMemo(Generic[T]):
    """Calls `work(name, *inputs)` when an input differs from that of the name's last call.

    Inputs are compared, so they must be values that do not change. Beyond `MOST_KNOWN` names all values are dropped.
    """

    def __init__(self, work: Callable[..., T]) -> None:
        self._work = work
        self._known: dict[str, tuple[tuple[object, ...], T]] = {}

    def __call__(self, name: str, *inputs: object) -> T:
        """Return the value for a name and its inputs."""
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
        elif known[0] == inputs:
            return known[1]
        value = self._work(name, *inputs)
        self._known[name] = inputs, value
        return value
