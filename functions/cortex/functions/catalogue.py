"""The catalogue: all functions and aliases that an operator declares in `models.toml`.

A text is read as a whole or rejected with all its problems, each with file, line, function, key and the nearest valid
key.
"""

import tomllib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from cortex.functions import arguments, hours, variants
from cortex.functions.launch import fast_tricks
from cortex.functions.launch.command import PLACEHOLDERS, has_placeholder, unknown_placeholders
from cortex.functions.names import did_you_mean, fault_in, nearest
from cortex.functions.servers import max_concurrency, server_of
from cortex.functions.sources import DEMO, BadSource, source_of
from cortex.functions.spec import SLEEPERS, Adapter, Engine, Function, Park, Start
from cortex.functions.toml_lines import TomlLines

_TYPES = {name: hint for name, hint in Function.__annotations__.items()}
_OF_ROUTERS = ("adapters",)
_KEYS = (*(f for f in Function.__struct_fields__ if f not in _OF_ROUTERS), "harness", "base")
_SHARED = tuple(
    k for k in _KEYS if k not in ("id", "source", "variant_of", "base", "adapter")
)  # what [defaults] may set
_SYNONYMS = {"engine": "harness", "harness": "engine"}
_OF_ALIAS = ("use", "on_cold")
_NOT_YET: dict[str, str] = {}
"""Keys that are accepted but have no effect yet, each with the reason."""
_REPLACED = {"sleep": 'write park = "auto" or "sleep" for true, park = "stop" for false'}
"""Keys of earlier releases, with what to write instead."""


class Problem(Struct, frozen=True, kw_only=True):
    """A problem in a file of an operator. `str()` is the line to print."""

    file: str
    line: int | None
    where: str
    what: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.where}: {self.what}" if self.where else f"{place}: {self.what}"


class CatalogueError(Exception):
    """The catalogue is invalid; `problems` lists all its problems."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class Substitute(Struct, frozen=True, forbid_unknown_fields=True):
    """Which function answers for an alias while the alias's own is not ready: `on_cold` of an alias."""

    use: str
    within_s: Annotated[float, Meta(ge=0, le=60)] = 0.0
    """How long a request waits for its own function, if that is expected to be ready by then."""


class Catalogue(Struct, frozen=True):
    """All functions in the order declared, the function id of each alias, and the substitutes of aliases by name."""

    functions: dict[str, Function] = {}
    aliases: dict[str, str] = {}
    substitutes: dict[str, Substitute] = {}

    def resolve(self, name: str) -> Function | None:
        """Return the function with an id or alias."""
        return self.functions.get(self.aliases.get(name, name))

    @property
    def hosted(self) -> "Catalogue":
        """The catalogue for agents: the functions that have instances of their own."""
        return Catalogue(variants.with_instances(self.functions), self.aliases, self.substitutes)

    def nearest(self, name: str) -> list[str]:
        """Return the ids and aliases that resemble `name`."""
        return nearest(name, (*self.functions, *self.aliases))


def read(text: str, *, file: str, folder: str, strict: bool = False) -> Catalogue:
    """Read the text of a `models.toml`. Relative paths are taken from `folder`. With `strict`, arguments that keep a
    function from starting are problems too; a service starts the other functions.

    Raises CatalogueError with all problems.
    """
    return _Reader(text, file=file, folder=folder, strict=strict).read()


def notes(catalogue: Catalogue) -> list[str]:
    """Return notes about settings without an effect and about invalid sources, so that nothing is ignored silently."""
    blank = Function(id="-", engine=Engine.LLAMACPP)
    functions = variants.with_instances(catalogue.functions).values()
    sources = [f for f in catalogue.functions.values() if f.adapter or not f.variant_of]
    unsure = [f"{f.id}: {why}" for f in sources if (why := _doubt(f))]
    foreign = [
        f"{f.id}: native = {dialect!r} is kept, but its server does not speak it: it is translated"
        for f in functions
        for dialect in f.native
        if dialect not in server_of(f).native
    ]
    awake = [
        f'{f.id}: park = "sleep" is kept, but engine "{f.engine}" cannot sleep: its instances stop'
        for f in functions
        if f.park is Park.SLEEP and f.engine not in SLEEPERS
    ]
    weak = variants.weaker_wishes(catalogue.functions)
    one_set = [
        f'{f.id}: start = "{f.start}" is kept, but {_one_set(f)}: all its starts are alike'
        for f in functions
        if f.start is not Start.AUTO and not fast_tricks(f)
    ]
    return [*unsure, *foreign, *awake, *weak, *one_set] + [
        f"{f.id}: {key} = {getattr(f, key)!r} is kept, but {why}"
        for f in functions
        for key, why in _NOT_YET.items()
        if getattr(f, key) != getattr(blank, key)
    ]


def _one_set(function: Function) -> str:
    """Return why a function has no fast start."""
    if function.engine is Engine.VLLM:
        return "its args decide about compilation and graphs themselves"
    return f'engine "{function.engine}" starts in one way only'


def _doubt(function: Function) -> str:
    """Return why a function's source or that of its adapter is invalid, or "". They may be on a host all the same."""
    try:
        source_of(function)
        if function.adapter:
            source_of(variants.as_weights(function, Adapter(function.id, function.adapter)))
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
        except (ValueError, RecursionError) as error:  # TOMLDecodeError, numbers that are too long, nesting too deep
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
        functions = self._functions(raw.get("models", []), defaults, raw.get("aliases", {}))
        aliases, rules = self._aliases(raw.get("aliases", {}), functions)
        substitutes = self._substitutes(rules, aliases, functions)
        if self.problems:
            raise CatalogueError(self.problems)
        return Catalogue({k: f for k, f in functions.items() if f}, aliases, substitutes)

    def _report(self, where: str, what: str, line: int | None) -> None:
        self.problems.append(Problem(file=self.file, line=line, where=where, what=what))

    def _defaults(self, raw: Any) -> dict[str, Any]:
        if not isinstance(raw, dict):
            self._report("defaults", "must be a table: [defaults]", self.lines.key("", "defaults"))
            return {}
        return dict(self._values(raw, allowed=_SHARED, table="defaults", nth=0, where="defaults"))

    def _functions(self, raw: Any, defaults: Mapping[str, Any], aliases: Any) -> dict[str, Function | None]:
        """Return the functions by id. The id of an invalid declaration maps to None, so that aliases resolve."""
        if not isinstance(raw, list) or not all(isinstance(entry, dict) for entry in raw):
            self._report("models", "must be written as [[models]] tables", self.lines.key("", "models"))
            return {}
        functions: dict[str, Function | None] = {}
        bases = {e["id"]: _base_of(e) for e in reversed(raw) if isinstance(e.get("id"), str)}
        of_variants = []
        for nth, entry in enumerate(raw):
            name = entry.get("id")
            where = name if isinstance(name, str) and name else f"models entry {nth + 1}"
            before = len(self.problems)
            if name is None:
                self._report(where, "has no id", self.lines.table("models", nth))
            declared = dict(self._values(entry, allowed=_KEYS, table="models", nth=nth, where=where))
            if isinstance(name, str):
                if fault := fault_in(name):
                    self._report(where, f"the id {fault}", self.lines.key("models", "id", nth))
                elif name in functions:
                    self._report(where, "is declared twice", self.lines.key("models", "id", nth))
            function = None
            if base_id := _base_of(entry):
                known = aliases if isinstance(aliases, dict) else {}
                self._check_variant(entry, variants.base_problem(where, base_id, bases, known), nth)
                if len(self.problems) == before:
                    of_variants.append((nth, where, declared))
            elif declared.get("adapter") and entry.keys().isdisjoint(("base", "variant_of")):
                what = 'adapter needs the function whose instances load it: base = "ID"'
                self._report(where, what, self.lines.key("models", "adapter", nth))
            elif len(self.problems) == before:
                # engine and harness are synonyms: an entry's key replaces the other one's default.
                shared = {k: v for k, v in defaults.items() if _SYNONYMS.get(k) not in entry}
                function = self._function({**shared, **declared}, nth, where)
            if isinstance(name, str):
                functions.setdefault(name, function)
        for nth, where, declared in of_variants:
            if (base := functions[declared["variant_of"]]) is not None:
                if declared.get("adapter"):
                    declared["adapter"] = self._path("adapter", declared)
                    if fault := variants.adapter_problem(declared["adapter"], base):
                        self._report(where, fault, self.lines.key("models", "adapter", nth))
                functions[where] = variant = variants.complete(base, declared)
                self._check_minimum(variant, where, self.lines.key("models", "min", nth))
        return functions

    def _check_variant(self, entry: Mapping[str, Any], base_problem: str, nth: int) -> None:
        where = str(entry.get("id", ""))
        if base_problem:
            key = "variant_of" if entry.get("variant_of") else "base"
            self._report(where, base_problem, self.lines.key("models", key, nth))
            return
        for key, what in variants.problems((k for k in entry if k in _KEYS and k != "base"), _base_of(entry)):
            self._report(where, what, self.lines.key("models", key, nth))

    def _check_minimum(self, function: Function, where: str, line: int | None) -> None:
        if function.min > function.max:
            self._report(where, f"min = {function.min} is more than max = {function.max}", line)

    def _values(
        self, raw: Mapping[str, Any], *, allowed: tuple[str, ...], table: str, nth: int, where: str
    ) -> Iterator[tuple[str, Any]]:
        """Convert a table key by key, so that one wrong key does not hide the next."""
        for key, value in raw.items():
            line = self.lines.key(table, key, nth)
            if key in _REPLACED:
                self._report(where, f"{key} has been replaced by park: {_REPLACED[key]}", line)
            elif key not in allowed:
                self._report(where, f"unknown key '{key}'{did_you_mean(key, allowed, cutoff=0)}", line)
            elif key == "harness":
                yield key, value  # read in `_engine`, together with quant
            elif key == "base":
                if not isinstance(value, str):
                    self._report(where, f"base: Expected `str`, got `{type(value).__name__}`", line)
                elif value and raw.get("variant_of"):
                    self._report(where, "has both base and variant_of, which mean the same: remove one of them", line)
                elif value:
                    yield "variant_of", value
            elif unknown := _unknown_within(key, value):
                self._report(where, f"{key}: {unknown}", line)
            else:
                try:
                    converted = msgspec.convert(value, _TYPES[key])
                    if key == "warm" and (fault := hours.fault_in(converted)):
                        self._report(where, f"warm: {fault}", line)
                    elif key == "chat_template_kwargs" and (large := [k for k, v in converted.items() if _is_large(v)]):
                        self._report(where, f"{key}: {large[0]}: expected a number of at most 2^53", line)
                    else:
                        yield key, converted
                except msgspec.ValidationError as error:
                    text = str(error)
                    if key in ("engine", "park", "start") and isinstance(value, str):
                        *others, last = _TYPES[key]
                        choices = f": use {', '.join(others)} or {last}"
                        text = f"unknown {key} '{value}'{did_you_mean(value, _TYPES[key]) or choices}"
                    self._report(where, f"{key}: {text}", line)

    def _function(self, values: dict[str, Any], nth: int, where: str) -> Function | None:
        line = self.lines.table("models", nth)
        engine = self._engine(values, nth, where)
        if engine is None:
            return None
        values |= {key: self._path(key, values) for key in ("source", "chat_template", "mmproj") if values.get(key)}
        function = Function(**{k: v for k, v in values.items() if k not in ("engine", "harness")}, engine=engine)
        self._check_minimum(function, where, line)
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
        if path.startswith(("/", "~")) or key in ("source", "adapter") or "{" in path:
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
        valid = ("candle", *Engine)
        self._report(where, f"unknown harness {harness!r}{did_you_mean(str(harness), valid)}", line)
        return None

    def _aliases(
        self, raw: Any, functions: Mapping[str, Function | None]
    ) -> tuple[dict[str, str], dict[str, Substitute]]:
        """Return the function of each alias, and what `on_cold` says of those that have it."""
        if not isinstance(raw, dict):
            self._report("aliases", "must be a table: [aliases]", self.lines.key("", "aliases"))
            return {}, {}
        aliases: dict[str, str] = {}
        rules: dict[str, Substitute] = {}
        for alias, target in raw.items():
            line = self._alias_line(alias)
            where = f"alias '{alias}'"
            if isinstance(target, dict) and not target.keys().isdisjoint(_OF_ALIAS):
                target, rule = self._alias_table(target, where, line)
                if target is None:
                    continue
                rules |= {alias: rule} if rule else {}
            if not isinstance(target, str):
                self._report(where, "must lead to an id in quotes (write aliases with a '.' in quotes)", line)
            elif fault := fault_in(alias):
                self._report(where, fault, line)
            elif alias in functions:
                self._report(where, "has the same name as a function", line)
            else:
                aliases[alias] = target
        # An alias of an invalid function or alias is not a second problem.
        ends = {**dict.fromkeys(raw), **functions}
        for alias in aliases:  # an alias of an alias has its substitute
            path = [alias]
            while (target := aliases.get(path[-1])) and target not in path:
                path.append(target)
            rule = next((rules[name] for name in path if name in rules), None)
            rules |= {alias: rule} if rule else {}
        return {a: t for a in aliases if (t := self._follow(a, aliases, ends))}, rules

    def _alias_line(self, alias: str) -> int | None:
        return self.lines.table(f"aliases.{alias}") or self.lines.key("aliases", alias)

    def _alias_table(
        self, raw: Mapping[str, Any], where: str, line: int | None
    ) -> tuple[str | None, Substitute | None]:
        """Return the target and the substitute of `alias = { use = "big", on_cold = { use = "small" } }`."""
        unknown = [k for k in raw if k not in _OF_ALIAS]
        for key in unknown:
            self._report(where, f"unknown key '{key}'{did_you_mean(key, _OF_ALIAS, cutoff=0)}", line)
        target = raw.get("use")
        if not isinstance(target, str):
            self._report(where, 'has no `use`: write { use = "id", on_cold = { use = "another id" } }', line)
            return None, None
        on_cold = raw.get("on_cold")
        if on_cold is None or unknown:
            return target, None
        if isinstance(on_cold, dict) and (odd := [k for k in on_cold if k not in Substitute.__struct_fields__]):
            hint = did_you_mean(odd[0], Substitute.__struct_fields__, cutoff=0)
            self._report(where, f"on_cold: unknown key '{odd[0]}'{hint}", line)
            return target, None
        try:
            return target, msgspec.convert(on_cold, Substitute)
        except msgspec.ValidationError as error:
            self._report(where, f"on_cold: {error}", line)
            return target, None

    def _substitutes(
        self,
        rules: Mapping[str, Substitute],
        aliases: Mapping[str, str],
        functions: Mapping[str, Function | None],
    ) -> dict[str, Substitute]:
        """Return the substitutes with the ids of their functions."""
        resolved = {}
        for alias, rule in rules.items():
            where, line, use = f"alias '{alias}'", self._alias_line(alias), aliases.get(rule.use, rule.use)
            if rule.use == alias:
                self._report(where, f"on_cold: '{alias}' is the alias itself: name another function", line)
            elif rule.use in rules:
                self._report(where, f"on_cold: '{rule.use}' has a substitute of its own: name a function", line)
            elif use not in functions:
                hint = did_you_mean(rule.use, (*functions, *aliases))
                self._report(where, f"on_cold: '{rule.use}' is not in the catalogue{hint}", line)
            elif use == aliases.get(alias):
                self._report(where, f"on_cold: '{rule.use}' is the function itself: name another one", line)
            elif _share_instances(functions.get(aliases.get(alias, "")), functions[use]):
                what = "shares the instances of the function itself, so both are cold: name another one"
                self._report(where, f"on_cold: '{rule.use}' {what}", line)
            resolved[alias] = Substitute(use, rule.within_s)
        return resolved

    def _follow(self, alias: str, aliases: Mapping[str, str], functions: Mapping[str, Function | None]) -> str | None:
        """Return the id that an alias stands for; an alias may name another alias."""
        path = [alias]
        while (target := aliases.get(path[-1])) is not None:
            if target in path:
                line = self.lines.key("aliases", alias)
                self._report(f"alias '{alias}'", f"leads in a circle: {' → '.join([*path, target])}", line)
                return None
            path.append(target)
        if path[-1] in functions:
            return path[-1]
        # Of a chain of aliases that ends nowhere, only the last is reported.
        if len(path) == 2:
            hint = did_you_mean(path[-1], (*functions, *aliases))
            self._report(
                f"alias '{alias}'",
                f"leads to '{path[-1]}', which is not in the catalogue{hint}",
                self.lines.key("aliases", alias),
            )
        return None


def _base_of(entry: Mapping[str, Any]) -> str:
    """Return the base that an entry names, or ""; a name that is no text is reported with the other values."""
    base = entry.get("variant_of") or entry.get("base")
    return base if isinstance(base, str) else ""


def _share_instances(one: Function | None, other: Function | None) -> bool:
    return one is not None and other is not None and one.base_id == other.base_id


def _is_large(value: object) -> bool:
    """Whether a number is more than JSON's readers agree on."""
    return isinstance(value, int) and abs(value) > 2**53


def _unknown_within(key: str, value: Any) -> str:
    """Return the unknown keys of an inline table, such as `sampling = { ... }`, with the nearest valid ones, or ""."""
    fields = getattr(_TYPES[key], "__struct_fields__", None)
    if fields is None or not isinstance(value, dict):
        return ""
    return "; ".join(f"unknown key '{k}'{did_you_mean(k, fields, cutoff=0)}" for k in value if k not in fields)


def _contradictions(function: Function, declared: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the keys of turns that contradict others, and what to set instead. `declared` are the keys in the file."""
    least, longest = function.turn_min_s, function.turn_wait_s
    if longest and longest < least:
        key = "turn_wait_s" if "turn_wait_s" in declared else "turn_min_s"
        yield (
            key,
            (
                f"turn_wait_s = {longest:g} is less than turn_min_s = {least:g}, which every turn lasts: "
                f"set turn_wait_s to {least:g} or more, or to 0 to close no instance in use"
            ),
        )
    grace, clock = function.turn_grace_s, function.request_timeout_s
    if "turn_grace_s" in declared and grace > clock:
        what = f"turn_grace_s = {grace:g} is more than request_timeout_s = {clock:g}, which ends every request"
        yield "turn_grace_s", f"{what}: set turn_grace_s to that or less"


def _misfits(function: Function) -> Iterator[tuple[str, str]]:
    """Yield the keys that do not fit the entry's engine, and why."""
    if function.engine is Engine.COMMAND:
        if not function.command:
            yield "engine", 'engine = "command" needs a command: command = ["program", "--port", "{port}"]'
        elif not has_placeholder(function.command, "port"):
            yield "command", "the command has no {port}: cortex chooses the port on which it listens"
        for name in unknown_placeholders(function.command):
            yield "command", f"unknown placeholder '{{{name}}}'{did_you_mean(name, PLACEHOLDERS, cutoff=0)}"
    elif function.command:
        yield "command", f'command is for engine = "command", not "{function.engine}"'
    elif function.served_name:
        yield "served_name", f'served_name is for engine = "command", not "{function.engine}"'
    if function.server and function.engine is not Engine.LLAMACPP:
        yield "server", f'server is for engine = "llamacpp", not "{function.engine}"'
    if function.keep_context and (why := _keeps_no_context(function)):
        yield "keep_context", f"keep_context: {why}"
    if not server_of(function).dialects:
        yield "task", _cannot(function)


_PROJECTORS = frozenset(("-mm", "--mmproj", "-mmu", "--mmproj-url"))


def _keeps_no_context(function: Function) -> str:
    """Return why a function's conversations cannot be saved, or ""."""
    server = server_of(function)
    if function.engine is Engine.VLLM:
        return "vLLM does not save prompts when a worker leaves; its own KV connectors are options of args"
    if not server.saves_slots:
        return 'only llama.cpp\'s own server saves conversations: engine = "llamacpp" without llama_cpp.server'
    if "completions" not in server.dialects:
        return f'task = "{function.task}" has no conversations'
    if function.mmproj or any(word.partition("=")[0] in _PROJECTORS for word in function.args):
        return "llama.cpp saves no conversations with a vision encoder: remove keep_context or mmproj"
    if max_concurrency(function, server) is None:
        return "needs a known number of slots: set target_concurrency instead of --parallel in args"
    return ""


def _cannot(function: Function) -> str:
    """Return that a function's server has no endpoint for its task, and what has one."""
    able = [
        f'"{engine}"'
        for engine in Engine
        if engine is not Engine.FAKE and server_of(Function(id="-", engine=engine, task=function.task)).dialects
    ]
    server = f' with server = "{function.server}"' if function.server else ""
    return f'engine = "{function.engine}"{server} has no task "{function.task}": write engine = {" or ".join(able)}'


def _line_of(error: Exception) -> int | None:
    """Return the line of a TOML error. `tomllib` (3.11) has it only in the message: "… (at line 3, column 7)"."""
    _, _, tail = str(error).partition("(at line ")
    number = tail.partition(",")[0]
    return int(number) if number.isdigit() else None
