"""Ends what a group of tests shares after the last test of the group.

Fixtures of the session end with their process, which goes on with other tests for minutes. Meanwhile a running cortex
takes a twentieth of a core.
"""

from collections import Counter
from collections.abc import Callable

import pytest

_tests: Counter[str] = Counter()
_ends: dict[str, list[Callable[[], None]]] = {}


def end_after(group: str, end: Callable[[], None]) -> None:
    """Call `end` after the last test of an `xdist_group` that this process runs. The fixture calls it again."""
    _ends.setdefault(group, []).append(end)


def expect(items: list[pytest.Item]) -> None:
    """Count the tests of each group."""
    _tests.update(group for item in items for group in _groups(item))


def done(item: pytest.Item) -> None:
    """Note that a test has run."""
    for group in _groups(item):
        _tests[group] -= 1
        if not _tests[group]:
            for end in _ends.pop(group, []):
                end()


def _groups(item: pytest.Item) -> list[str]:
    return [mark.args[0] for mark in item.iter_markers("xdist_group")]
