"""Values that follow from a function's entry alone, computed once for each entry."""

from collections.abc import Callable
from typing import Generic, TypeVar

from cortex.functions.spec import Function

T = TypeVar("T")

MOST_KNOWN = 32_768


class Memo(Generic[T]):
    """What `work` returned for functions, by their identity: a large catalogue is listed again and again."""

    def __init__(self, work: Callable[[Function], T]) -> None:
        self._work = work
        self._known: dict[int, tuple[Function, T]] = {}
        """An entry holds its function, so no other one has its id meanwhile."""

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
