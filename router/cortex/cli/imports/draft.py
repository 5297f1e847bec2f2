"""A draft of a `models.toml`: what another tool's models become, and what cannot be carried over.

Its text always passes `cortex check`: an entry that does not is left out, with the problem as a note.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from cortex.cli.toml_text import write_key, write_value
from cortex.functions.catalogue import CatalogueError, read

FOREVER_S = 31_536_000
"""A year: what a tool that never unloads a model becomes."""


class Entry(Struct):
    """One function. `notes` say what of it is not carried over."""

    id: str
    keys: dict[str, Any] = {}
    notes: list[str] = []

    def drop(self, names: Iterable[str], why: str = "") -> None:
        """Note settings that are not carried over. Values may be secret, so a note has only names."""
        joined = ", ".join(sorted(set(names)))
        if joined:
            self.notes.append(f"{joined} {'is' if ',' not in joined else 'are'} not carried over{why and f': {why}'}")

    def sample(self, name: str, value: Any) -> None:
        """Set a sampling parameter that applies where a client says nothing."""
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            self.keys.setdefault("sampling", {})[name] = int(value) if name == "top_k" else value

    def text(self) -> str:
        """Return its table."""
        lines = ["[[models]]", *(_comment(note) for note in self.notes), f"id = {write_value(self.id)}"]
        first = [key for key in ("engine", "source", "quant") if key in self.keys]
        order = [*first, *(key for key in self.keys if key not in first)]
        return "\n".join([*lines, *(f"{key} = {write_value(self.keys[key])}" for key in order), ""])


class Draft(Struct):
    """All functions that a tool has, and their aliases."""

    origin: str
    entries: dict[str, Entry] = {}
    aliases: dict[str, str] = {}
    defaults: dict[str, Any] = {}
    notes: list[str] = []

    def add(self, entry: Entry) -> None:
        """Add an entry, unless its id is taken."""
        if entry.id in self.entries:
            self.notes.append(f"{entry.id}: it is there twice: the second one is left out")
        else:
            self.entries[entry.id] = entry

    def alias(self, name: str, target: str) -> None:
        """Add another name of an entry, unless it is taken."""
        if name == target:
            return
        if self.aliases.setdefault(name, target) != target:
            self.notes.append(f"{target}: the alias {name} belongs to {self.aliases[name]} already")

    def check(self) -> None:
        """Leave out what `cortex check` rejects, with its reason as a note."""
        for name, entry in list(self.entries.items()):
            try:
                read(self._defaults() + entry.text(), file="", folder="/", strict=True)
            except CatalogueError as error:
                why = "; ".join(p.what for p in error.problems)
                self.notes.append(f"{name}: left out: {why}")
                del self.entries[name]
        self.aliases = {a: t for a, t in self.aliases.items() if t in self.entries and a not in self.entries}
        models = "".join(e.text() for e in self.entries.values())
        for alias, target in list(self.aliases.items()):
            try:
                read(models + _table("aliases", {alias: target}), file="", folder="/")
            except CatalogueError as error:
                self.notes.append(f"the alias {alias} is left out: {error.problems[0].what}")
                del self.aliases[alias]

    def text(self) -> str:
        """Return the `models.toml`."""
        head = [_comment(f"From {self.origin}, by `cortex import`."), *map(_comment, self.notes), ""]
        nothing = "" if self.entries else "models = []\n"
        parts = ["\n".join(head), nothing, self._defaults(), *(e.text() for e in self.entries.values())]
        if self.aliases:
            parts.append(_table("aliases", self.aliases))
        return "\n".join(part for part in parts if part)

    def every_note(self) -> list[str]:
        """Return all notes, those of an entry with its name."""
        return [*self.notes, *(f"{e.id}: {note}" for e in self.entries.values() for note in e.notes)]

    def _defaults(self) -> str:
        return _table("defaults", self.defaults) if self.defaults else ""


def _table(name: str, values: Mapping[str, Any]) -> str:
    return "\n".join([f"[{name}]", *(f"{write_key(k)} = {write_value(v)}" for k, v in values.items()), ""])


def _comment(text: str) -> str:
    """Return a comment of one line: other tools' files may have any character."""
    return "# " + "".join(c if c.isprintable() else " " for c in text)
