"""Values that depend on a function's entry alone, computed once for each entry."""

from collections.abc import Callable
from typing import Generic, TypeVar

from cortex.functions.spec import Function

T = TypeVar("T")

MOST_KNOWN = 32_768


class Memo(Generic[T]):
    """Calls `work` once for each function, by identity: a large catalogue is listed again and again.

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
