"""The catalogue: every function and alias an operator declares, read from the text of `models.toml`.

Reading is all or nothing, and it reports every problem at once: a catalogue either stands whole or is
refused with a list that names file, line, function, key and the nearest valid key.
"""

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from cortex.functions import arguments
from cortex.functions.launch.command import PLACES, unknown_places, wants
from cortex.functions.names import did_you_mean, fault_in, nearest
from cortex.functions.servers import server_of
from cortex.functions.sources import DEMO, BadSource, source_of
from cortex.functions.spec import Engine, Function
from cortex.functions.toml_lines import TomlLines

_TYPES = {name: hint for name, hint in Function.__annotations__.items()}
_KEYS = (*Function.__struct_fields__, "harness")
_SHARED = tuple(k for k in _KEYS if k not in ("id", "source"))  # what [defaults] may set
_OTHER_WORD = {"engine": "harness", "harness": "engine"}
_NOT_YET: dict[str, str] = {}
"""Keys that are taken but whose effect comes later, and why they have none yet."""


class Problem(Struct, frozen=True, kw_only=True):
    """One thing wrong with a file an operator wrote. `str()` is the line to print."""

    file: str
    line: int | None
    where: str
    what: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.where}: {self.what}" if self.where else f"{place}: {self.what}"


class CatalogueError(Exception):
    """The catalogue does not stand; `problems` says everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class Catalogue(Struct, frozen=True):
    """All functions in the order declared, and every alias with the id it leads to."""

    functions: dict[str, Function] = {}
    aliases: dict[str, str] = {}

    def resolve(self, name: str) -> Function | None:
        """Return the function an id or alias stands for."""
        return self.functions.get(self.aliases.get(name, name))

    def aliases_of(self, function_id: str) -> list[str]:
        """Return the aliases that lead to a function, in the order declared."""
        return [alias for alias, target in self.aliases.items() if target == function_id]

    def nearest(self, name: str) -> list[str]:
        """Return known ids and aliases that look like `name`."""
        return nearest(name, (*self.functions, *self.aliases))


def read(text: str, *, file: str, folder: str, strict: bool = False) -> Catalogue:
    """Read the text of a `models.toml`. Relative paths are taken from `folder`. With `strict`, arguments that keep a
    function from starting are problems too; a service starts the other functions.

    Raises CatalogueError with every problem found.
    """
    return _Reader(text, file=file, folder=folder, strict=strict).read()


def notes(catalogue: Catalogue) -> list[str]:
    """Say which settings have no effect yet and which sources lead nowhere: nothing is ignored in silence."""
    blank = Function(id="-", engine=Engine.LLAMACPP)
    functions = catalogue.functions.values()
    unsure = [f"{f.id}: {why}" for f in functions if (why := _doubt(f))]
    foreign = [
        f"{f.id}: native = {dialect!r} is kept, but its server does not speak it: it is translated"
        for f in functions
        for dialect in f.native
        if dialect not in server_of(f).native
    ]
    return [*unsure, *foreign] + [
        f"{f.id}: {key} = {getattr(f, key)!r} is kept, but {why}"
        for f in catalogue.functions.values()
        for key, why in _NOT_YET.items()
        if getattr(f, key) != getattr(blank, key)
    ]


def _doubt(function: Function) -> str:
    """Why a function's weights cannot be found as it stands. It may be served all the same once it is mended."""
    try:
        source_of(function)
    except BadSource as error:
        return str(error)
    return ""


class _Reader:
    def __init__(self, text: str, *, file: str, folder: str, strict: bool) -> None:
        self.file, self.folder, self.text, self.strict = file, folder, text, strict
        self.lines = TomlLines(text)
        self.problems: list[Problem] = []

    def read(self) -> Catalogue:
        try:
            raw = tomllib.loads(self.text)
        except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: numbers and nesting have ends
            self._report("", f"is not TOML: {error}", _line_of(error))
            raise CatalogueError(self.problems) from None
        for key in raw:
            if key not in ("defaults", "models", "aliases"):
                self._report(
                    "",
                    f"unknown table '{key}'{did_you_mean(key, ('defaults', 'models', 'aliases'), cutoff=0)}",
                    self.lines.key("", key),
                )
        defaults = self._defaults(raw.get("defaults", {}))
        functions = self._functions(raw.get("models", []), defaults)
        aliases = self._aliases(raw.get("aliases", {}), functions)
        if self.problems:
            raise CatalogueError(self.problems)
        return Catalogue({k: f for k, f in functions.items() if f}, aliases)

    def _report(self, where: str, what: str, line: int | None) -> None:
        self.problems.append(Problem(file=self.file, line=line, where=where, what=what))

    def _defaults(self, raw: Any) -> dict[str, Any]:
        if not isinstance(raw, dict):
            self._report("defaults", "must be a table: [defaults]", self.lines.key("", "defaults"))
            return {}
        return dict(self._values(raw, allowed=_SHARED, table="defaults", nth=0, where="defaults"))

    def _functions(self, raw: Any, defaults: Mapping[str, Any]) -> dict[str, Function | None]:
        """Return the functions by id; an id that was declared wrongly maps to None, so aliases still find it."""
        if not isinstance(raw, list) or not all(isinstance(entry, dict) for entry in raw):
            self._report("models", "must be written as [[models]] tables", self.lines.key("", "models"))
            return {}
        functions: dict[str, Function | None] = {}
        for nth, entry in enumerate(raw):
            name = entry.get("id")
            where = name if isinstance(name, str) and name else f"models entry {nth + 1}"
            before = len(self.problems)
            if name is None:
                self._report(where, "has no id", self.lines.table("models", nth))
            # engine and harness are two words for one thing: an entry's own word replaces the default's.
            shared = {k: v for k, v in defaults.items() if _OTHER_WORD.get(k) not in entry}
            values = {
                **shared,
                **dict(self._values(entry, allowed=_KEYS, table="models", nth=nth, where=where)),
            }
            if isinstance(name, str):
                if fault := fault_in(name):
                    self._report(where, f"the id {fault}", self.lines.key("models", "id", nth))
                elif name in functions:
                    self._report(where, "is declared twice", self.lines.key("models", "id", nth))
            function = self._function(values, nth, where) if len(self.problems) == before else None
            if isinstance(name, str):
                functions.setdefault(name, function)
        return functions

    def _values(
        self, raw: Mapping[str, Any], *, allowed: tuple[str, ...], table: str, nth: int, where: str
    ) -> Iterator[tuple[str, Any]]:
        """Convert a table key by key, so that one wrong key does not hide the next."""
        for key, value in raw.items():
            line = self.lines.key(table, key, nth)
            if key not in allowed:
                self._report(where, f"unknown key '{key}'{did_you_mean(key, allowed, cutoff=0)}", line)
            elif key == "harness":
                yield key, value  # the seed's word for engine: read in `_engine`, where quant is known
            elif unknown := _unknown_within(key, value):
                self._report(where, f"{key}: {unknown}", line)
            else:
                try:
                    yield key, msgspec.convert(value, _TYPES[key])
                except msgspec.ValidationError as error:
                    text = str(error)
                    if key == "engine" and isinstance(value, str):
                        text = f"unknown engine '{value}'{did_you_mean(value, list(Engine), cutoff=0)}"
                    self._report(where, f"{key}: {text}", line)

    def _function(self, values: dict[str, Any], nth: int, where: str) -> Function | None:
        line = self.lines.table("models", nth)
        engine = self._engine(values, nth, where)
        if engine is None:
            return None
        values |= {key: self._path(key, values) for key in ("source", "chat_template", "mmproj") if values.get(key)}
        function = Function(**{k: v for k, v in values.items() if k not in ("engine", "harness")}, engine=engine)
        if function.min > function.max:
            self._report(where, f"min = {function.min} is more than max = {function.max}", line)
        for key, what in _contradictions(function, values):
            at = self.lines.key("models", key, nth)
            self._report(where, what, self.lines.key("defaults", key) if at == line else at)
        for key, what in (*_misfits(function), *(arguments.problems(function) if self.strict else ())):
            self._report(where, what, self.lines.key("models", key, nth) or line)
        return function

    def _path(self, key: str, values: Mapping[str, Any]) -> str:
        """Return a path of an entry by one rule: `/…` and `~…` are paths on the host, `./…` and `../…` stand beside the
        catalogue, and so does another name of a template or of an encoder whose model is no repository. A template may
        be the text itself."""
        path: str = values[key]
        if path.startswith("./"):
            return f"{self.folder}/{path[2:]}"
        if path.startswith("../"):
            return f"{self.folder}/{path}"
        if path.startswith(("/", "~")) or key == "source" or "{" in path:
            return path
        source = values.get("source") or values.get("id") or ""
        if key == "mmproj" and not source.startswith(("/", "~", ".", DEMO)):
            return path  # a file of the repository
        return f"{self.folder}/{path}"

    def _engine(self, values: Mapping[str, Any], nth: int, where: str) -> Engine | None:
        engine, harness = values.get("engine"), values.get("harness")
        line = self.lines.key("models", "harness", nth)
        if harness is None:
            if engine is None:
                self._report(where, f"has no engine ({', '.join(Engine)})", line)
            return engine
        if engine is not None:
            self._report(where, "has both engine and harness; harness is the older word for engine", line)
            return None
        if harness == "candle":
            return Engine.LLAMACPP if values.get("quant") else Engine.VLLM
        if harness in list(Engine):
            return Engine(harness)
        known = ("candle", *Engine)
        self._report(where, f"unknown harness {harness!r}{did_you_mean(str(harness), known)}", line)
        return None

    def _aliases(self, raw: Any, functions: Mapping[str, Function | None]) -> dict[str, str]:
        if not isinstance(raw, dict):
            self._report("aliases", "must be a table: [aliases]", self.lines.key("", "aliases"))
            return {}
        aliases: dict[str, str] = {}
        for alias, target in raw.items():
            line = self.lines.key("aliases", alias)
            where = f"alias '{alias}'"
            if not isinstance(target, str):
                self._report(where, "must lead to an id in quotes (write aliases with a '.' in quotes)", line)
            elif fault := fault_in(alias):
                self._report(where, fault, line)
            elif alias in functions:
                self._report(where, "has the same name as a function", line)
            else:
                aliases[alias] = target
        # A name that was declared wrongly is still a name: what leads to it is not a second problem.
        ends = {**dict.fromkeys(raw), **functions}
        return {a: t for a in aliases if (t := self._follow(a, aliases, ends))}

    def _follow(self, alias: str, aliases: Mapping[str, str], functions: Mapping[str, Function | None]) -> str | None:
        """Return the id an alias leads to in the end; aliases may lead to aliases."""
        seen = [alias]
        while (target := aliases.get(seen[-1])) is not None:
            if target in seen:
                line = self.lines.key("aliases", alias)
                self._report(f"alias '{alias}'", f"leads in a circle: {' → '.join([*seen, target])}", line)
                return None
            seen.append(target)
        if seen[-1] in functions:
            return seen[-1]
        # An alias to a broken alias is not a second problem: the one that leads nowhere is reported.
        if len(seen) == 2:
            hint = did_you_mean(seen[-1], (*functions, *aliases))
            self._report(
                f"alias '{alias}'",
                f"leads to '{seen[-1]}', which is not in the catalogue{hint}",
                self.lines.key("aliases", alias),
            )
        return None


def _unknown_within(key: str, value: Any) -> str:
    """Say which key of a small table, such as `sampling = { ... }`, is none, and which was meant."""
    fields = getattr(_TYPES[key], "__struct_fields__", None)
    if fields is None or not isinstance(value, dict):
        return ""
    return "; ".join(f"unknown key '{k}'{did_you_mean(k, fields, cutoff=0)}" for k in value if k not in fields)


def _contradictions(function: Function, given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the keys of turns that cannot hold together, and what to set instead. `given` are the keys that stand in
    the file."""
    least, longest = function.turn_min_s, function.turn_wait_s
    if longest and longest < least:
        key = "turn_wait_s" if "turn_wait_s" in given else "turn_min_s"
        yield (
            key,
            (
                f"turn_wait_s = {longest:g} is less than turn_min_s = {least:g}, which every turn lasts: "
                f"set turn_wait_s to {least:g} or more, or to 0 to close no instance in use"
            ),
        )
    grace, clock = function.turn_grace_s, function.request_timeout_s
    if "turn_grace_s" in given and grace > clock:
        what = f"turn_grace_s = {grace:g} is more than request_timeout_s = {clock:g}, which ends every request"
        yield "turn_grace_s", f"{what}: set turn_grace_s to that or less"


def _misfits(function: Function) -> Iterator[tuple[str, str]]:
    """Yield the keys that make no sense with an entry's engine, and why."""
    if function.engine is Engine.COMMAND:
        if not function.command:
            yield "engine", 'engine = "command" needs a command: command = ["program", "--port", "{port}"]'
        elif not wants(function.command, "port"):
            yield "command", "the command has no {port}: cortex chooses where it listens"
        for name in unknown_places(function.command):
            yield "command", f"unknown place '{{{name}}}'{did_you_mean(name, PLACES, cutoff=0)}"
    elif function.command:
        yield "command", f'command is for engine = "command", not "{function.engine}"'
    if function.server and function.engine is not Engine.LLAMACPP:
        yield "server", f'server is for engine = "llamacpp", not "{function.engine}"'
    if function.sleep and function.engine is not Engine.VLLM:
        yield "sleep", f'sleep is for engine = "vllm", not "{function.engine}"'


def _line_of(error: Exception) -> int | None:
    """`tomllib` (3.11) tells the line only inside its message: "… (at line 3, column 7)"."""
    _, _, tail = str(error).partition("(at line ")
    number = tail.partition(",")[0]
    return int(number) if number.isdigit() else None
