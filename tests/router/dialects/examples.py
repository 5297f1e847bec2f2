"""How many examples hypothesis tries. No deadline: the machine is shared, and a slow moment is no fault."""

from hypothesis import settings


def examples(count: int) -> settings:
    return settings(max_examples=count, deadline=None)
