"""The table a fleet test prints: what was done, whether it held, how long it took, what was seen."""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table


class Failed(Exception):
    """What was seen is not what has to hold."""


class Step:
    """One line of the table; `saw` is what it notes."""

    def __init__(self, what: str) -> None:
        self.what, self.saw, self.held, self.took_s = what, "", False, 0.0

    def check(self, held: object, what: str) -> None:
        """Note a thing that has to hold; fail the step if it does not."""
        if not held:
            raise Failed(what)


class Report:
    """All steps so far."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    @contextmanager
    def step(self, what: str, *, needed: bool = False) -> Iterator[Step]:
        """Do one step. A step that others need ends the test when it fails."""
        step = Step(what)
        self.steps.append(step)
        began = time.monotonic()
        print(f"fleet: {what} …", flush=True)
        try:
            yield step
            step.held = True
        except Exception as error:
            step.saw = f"{step.saw + '; ' if step.saw else ''}{type(error).__name__}: {error}"[:600]
            if not isinstance(error, Failed):
                traceback.print_exc()
            if needed:
                raise
        finally:
            step.took_s = time.monotonic() - began
            print(f"fleet:   {'held' if step.held else 'FAILED'} after {step.took_s:.1f} s: {step.saw}", flush=True)

    def print(self) -> None:
        """Print the table."""
        table = Table("STEP", "HELD", "SECONDS", "SEEN")
        for step in self.steps:
            table.add_row(step.what, "yes" if step.held else "NO", f"{step.took_s:.1f}", step.saw)
        Console(width=170, highlight=False, markup=False).print(table)

    @property
    def held(self) -> bool:
        """Whether everything held."""
        return all(s.held for s in self.steps)
