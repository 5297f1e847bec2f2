"""Garbage collection while a process starts.

Imports make 150,000 objects, nearly all of which stay. Python by default looks for garbage after 700 new objects, which
takes a large part of the CPU time in which a router or agent starts, and finds none.
"""

import gc

AT_START = 100_000, 20, 100
BY_DEFAULT = 700, 10, 10


def collect_seldom() -> None:
    """Collect garbage seldom, while the process imports what it needs."""
    gc.set_threshold(*AT_START)


def settle(collect_after: int = BY_DEFAULT[0]) -> None:
    """Exempt what exists after the start from garbage collection, which otherwise searches it again and again. From now
    on collect after `collect_after` new objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(collect_after, *BY_DEFAULT[1:])
