"""Settings for hypothesis. No deadline: the machine is shared."""

from hypothesis import settings


def examples(count: int) -> settings:
    return settings(max_examples=count, deadline=None)
