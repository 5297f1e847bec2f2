"""The catalogue that this router serves; it follows its file.

A changed file takes effect without a restart. An invalid file leaves the old catalogue in effect, and `problem` has the
reason. Editors and deployments truncate a file before they write it, and a full disk truncates it, so a change is read
only once the file has stopped changing, and a file without functions takes effect only if it has `models = []`.
"""

import asyncio
import hashlib
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import asdict, replace

from cortex.functions.catalogue import Catalogue, CatalogueError, Substitute, read
from cortex.functions.hours import at_hours, is_open
from cortex.functions.names import nearest
from cortex.functions.servers import server_of
from cortex.functions.spec import Engine, Function, Park, revision
from cortex.functions.variants import WITH_ADAPTERS, adapter_name, adapter_number, fold
from cortex.platform import text_files
from cortex.platform.api_keys import Principal
from cortex.platform.blocking_calls import BlockingCalls, NoAnswer
from cortex.platform.record import Override
from cortex.router.errors import FunctionNotFound, NotAllowed

log = structlog.get_logger()

CHECK_S = 0.4
MOST_CHANGES = 25
"""Consecutive checks with a change after which `problem` reports it."""
READ_S = 10.0
"""Timeout for reading the file."""


class Target:
    """What a name resolves to: a function, and the revision of the instances that serve it.

    The catalogue has one for each function; every request reads it many times, so what follows is derived once.
    """

    __slots__ = ("base", "function", "has_adapter", "revision", "share", "worker_model")

    def __init__(self, function: Function, revision: str, of: Function | None = None, is_shared: bool = False) -> None:
        """`of` is the function of which it is a variant. `is_shared`: the same instances serve other functions."""
        self.function, self.revision = function, revision
        self.base = of or function
        """The function whose instances serve it: itself, or that of which it is a variant."""
        self.has_adapter = bool(function.adapter) and self.base.engine in WITH_ADAPTERS
        """Whether it is a variant with an adapter that its engine loads: the fake engine of `--fake` loads none."""
        self.share = function.id if is_shared else ""
        """The function's id if the same instances serve other functions, else empty."""
        self.worker_model = self.base.name_at_worker
        """The function's name at its workers."""
        if self.has_adapter and server_of(self.base).loads_adapters == "while it runs":
            self.worker_model = adapter_name(function.id, adapter_number(function.adapter))


class LiveCatalogue:
    """Resolves names. `follow()` applies changes of the file."""

    def __init__(
        self,
        path: Path,
        *,
        pretend: bool = False,
        admits_forbidden: bool = False,
        wall: Callable[[], float] = lambda: time.time(),
    ) -> None:
        """Read the catalogue; `hosted` is what agents get of it, with its `digest`. `wall` is the time by which hours
        begin and end.

        Raises CatalogueError or OSError; a router does not start without a catalogue.
        """
        self._path, self._pretend, self._admits_forbidden = path, pretend, admits_forbidden
        self._file = BlockingCalls(READ_S, hint="is its mount hung?")
        self._applied_mark: object = _mark(path)
        self._last_mark: object = self._applied_mark
        self._changes = 0
        self._next: asyncio.Future[None] | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.problem = ""
        self._overrides: dict[str, Override] = {}
        self._targets: dict[str, Target] = {}
        self._wall = wall
        text = text_files.read_regular(path)
        served = self._parse(text)
        self.is_deliberate = _is_deliberate(served.declared, text)
        """Whether the file declares functions or has `models = []`. Otherwise an empty catalogue is not sent to agents,
        because a truncated file would stop every instance."""
        self._apply(served)

    def resolve(self, name: str) -> Target:
        """Return the target of a name. Raises FunctionNotFound."""
        target = self._targets.get(name)
        if target is None:
            raise FunctionNotFound(name, self.catalogue.nearest(name))
        return target

    def resolve_for(self, name: str, caller: Principal) -> Target:
        """Return the target of a name for a caller who may use it.

        A name that the caller may not use gives the same error as an unknown name. The hint and its computing time
        depend only on names that the caller may use.

        Raises FunctionNotFound; NotAllowed if the operator set `admit_forbidden`.
        """
        target = self._targets.get(name)
        if target is not None and caller.may_use(target.function.id):
            return target
        if target is not None and self._admits_forbidden:
            raise NotAllowed(f"the key '{caller.name}' may not use the model {name[:200]!r}")
        visible = (n for n, t in self._targets.items() if caller.may_use(t.function.id))
        raise FunctionNotFound(name, nearest(name, visible))

    def usable(self, caller: Principal) -> Iterator[Function]:
        """Yield the functions that a caller may use."""
        return (f for f in self.catalogue.functions.values() if caller.may_use(f.id))

    def visible(self, caller: Principal) -> Iterator[tuple[str, Target]]:
        """Yield every name that a caller may use, with its target: functions in the order declared, then aliases. All
        are of the catalogue at the time of the call."""
        targets = self._targets
        names = chain(self.catalogue.functions, self.catalogue.aliases)
        return ((name, targets[name]) for name in names if caller.may_use(targets[name].function.id))

    def substitute(self, name: str, caller: Principal) -> tuple[Target, Substitute] | None:
        """Return the function that may answer a caller for an alias while its own is not ready, with the rule."""
        rule = self.catalogue.substitutes.get(name)
        target = self._targets.get(rule.use) if rule else None
        if rule is None or target is None or not caller.may_use(target.function.id):
            return None
        return target, rule

    def declaration(self, function: str) -> Function | None:
        """Return a function as the file declares it, without runtime overrides."""
        return self._served.declared.functions.get(function)

    def get(self, name: str) -> Target | None:
        """Return the target of a name; None if it is not in the catalogue."""
        return self._targets.get(name)

    async def change(self, timeout_s: float, *others: asyncio.Future[Any]) -> None:
        """Wait until the catalogue changes, one of the others is done, or the timeout passes."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        await asyncio.wait((self._next, *others), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    async def follow(self) -> None:
        """Check the file periodically and apply every valid change, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                await self.check()
            except NoAnswer as error:
                self.problem = f"{error}; the last valid catalogue stays in effect"
                self._applied_mark = self._last_mark = None  # read the file again as soon as it answers

    async def check(self) -> None:
        """Check the file once:

        (1) unchanged since it was applied: nothing to do;
        (2) changed since the last check: it may be incomplete, so wait for the next check;
        (3) unchanged since the last check: read it, and read it again later if it changed meanwhile.

        Raises NoAnswer if its mount hangs.
        """
        mark = await self._file.look(str(self._path), "mark", partial(_mark, self._path))
        if mark == self._applied_mark:  # (1)
            self._last_mark, self._changes = mark, 0
            return
        if mark != self._last_mark:  # (2)
            self._last_mark = mark
            self._changes += 1
            if self._changes == MOST_CHANGES:
                self._reject("the file does not stop changing")
            return
        await self._reread(mark)  # (3)

    async def _reread(self, mark: tuple[int, int, int]) -> None:
        problem, deliberate = "", False
        try:
            text = await self._file.look(str(self._path), "read", partial(text_files.read_regular, self._path))
            served = await self._file.look(str(self._path), "parse", partial(self._parse, text))
            deliberate = _is_deliberate(served.declared, text)
        except NoAnswer:
            raise
        except (CatalogueError, OSError, UnicodeDecodeError) as error:
            problem = str(error)
        self._last_mark = await self._file.look(str(self._path), "mark", partial(_mark, self._path))
        if self._last_mark != mark:
            return
        self._applied_mark, self._changes = mark, 0
        if not problem and self.catalogue.functions and not deliberate:
            problem = "the file declares no functions; to remove all functions, write `models = []`"
        if problem:
            self._reject(problem)
            return
        self.problem, self.is_deliberate = "", deliberate
        if served.overrides is not self._overrides:  # they changed while a thread made it
            served = self._with_overrides(served.started, served.declared)
        self._apply(served)
        log.info("catalogue_loaded", functions=len(served.declared.functions), aliases=len(served.declared.aliases))

    def _reject(self, why: str) -> None:
        self.problem = f"{self._path}: the last valid catalogue stays in effect: {why}"
        log.error("catalogue_rejected", why=why)

    def override(self, overrides: Mapping[str, Override]) -> None:
        """Apply runtime overrides on top of the catalogue, and the hours that have begun or ended."""
        if overrides != self._overrides or self._served.open != _with_open_hours(self._served.declared, self._wall()):
            self._overrides = dict(overrides)
            self._apply(self._with_overrides(self._served.started, self._served.declared))

    def _parse(self, text: str) -> "_Served":
        """Read the text, and derive all that follows from it. Raises CatalogueError."""
        return self._derive(_read(self._path, text))

    def _derive(self, declared: Catalogue) -> "_Served":
        return self._with_overrides(with_fake_engine(declared) if self._pretend else declared, declared)

    def _with_overrides(self, started: Catalogue, declared: Catalogue) -> "_Served":
        return _serve(started, declared, self._overrides, self._wall(), self._targets)

    def _apply(self, served: "_Served") -> None:
        self._served, self._targets = served, served.targets
        self.catalogue, self.hosted, self.digest = served.catalogue, served.hosted, served.digest
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None
        self.on_change()


class _Served(Struct, frozen=True):
    """All that follows from a catalogue."""

    declared: Catalogue
    """As the file declares it."""
    started: Catalogue
    """The same, or with `--fake` all of it on the fake engine."""
    overrides: Mapping[str, Override]
    open: frozenset[str]
    """Functions whose hours have begun."""
    catalogue: Catalogue
    """`started` with overrides and hours."""
    hosted: Catalogue
    digest: str
    targets: dict[str, Target]
    """By function and alias."""


def _serve(
    started: Catalogue,
    declared: Catalogue,
    overrides: Mapping[str, Override],
    at: float,
    earlier: Mapping[str, Target],
) -> _Served:
    """Return what follows from a catalogue. Functions that are unchanged objects keep their `earlier` targets."""
    catalogue = with_overrides(with_hours(started, at), overrides)
    functions = fold(catalogue.functions)
    catalogue = replace(catalogue, functions=functions)
    variants = [f for f in functions.values() if f.variant_of]
    bases = {f.variant_of for f in variants}
    targets = {id: _target(f, id in bases, earlier.get(id)) for id, f in functions.items() if not f.variant_of}
    for variant in variants:
        base = targets[variant.variant_of]
        targets[variant.id] = Target(variant, base.revision, base.function, True)
    for alias, of in catalogue.aliases.items():
        targets[alias] = targets[of]
    hosted = catalogue.hosted
    digest = hashlib.sha256(msgspec.json.encode(hosted, order="sorted")).hexdigest()[:16]
    return _Served(declared, started, overrides, _with_open_hours(started, at), catalogue, hosted, digest, targets)


def _target(function: Function, is_shared: bool, earlier: Target | None) -> Target:
    if earlier is not None and earlier.function is function and bool(earlier.share) is is_shared:
        return earlier
    return Target(function, revision(function), None, is_shared)


def load(path: Path, *, strict: bool = False) -> Catalogue:
    """Read a catalogue file. Raises CatalogueError, OSError or UnicodeDecodeError."""
    return _read(path, text_files.read(path), strict=strict)


def _read(path: Path, text: str, *, strict: bool = False) -> Catalogue:
    return read(text, file=path.name, folder=str(path.resolve().parent), strict=strict)


def _is_deliberate(catalogue: Catalogue, text: str) -> bool:
    """Whether a catalogue declares functions or its text has `models = []`."""
    return bool(catalogue.functions) or "models" in tomllib.loads(text.removeprefix("\ufeff"))


def with_fake_engine(catalogue: Catalogue) -> Catalogue:
    """Return the catalogue with every function on the fake engine, which simulates load time and memory."""
    return replace(catalogue, functions={f.id: _fake(f) for f in catalogue.functions.values()})


def with_hours(catalogue: Catalogue, at: float) -> Catalogue:
    """Return the catalogue with the minimums that its functions have at a Unix time."""
    return replace(catalogue, functions={f.id: at_hours(f, at) for f in catalogue.functions.values()})


def _with_open_hours(catalogue: Catalogue, at: float) -> frozenset[str]:
    return frozenset(f.id for f in catalogue.functions.values() if f.warm and is_open(f, at))


def with_overrides(catalogue: Catalogue, overrides: Mapping[str, Override]) -> Catalogue:
    """Return the catalogue with runtime overrides."""
    functions = {f.id: _override(f, overrides.get(f.id)) for f in catalogue.functions.values()}
    return replace(catalogue, functions=functions)


def _override(function: Function, override: Override | None) -> Function:
    if override is None:
        return function
    changes = {k: v for k, v in asdict(override).items() if v is not None}
    return replace(function, **changes)


def _fake(function: Function) -> Function:
    if function.engine is Engine.FAKE:
        return function
    load_s = 1 + min(9, function.vram_mb // 8192)
    args = ("--load-s", str(load_s), "--tps", "40", "--tokens", "120", "--memory-mb", str(function.vram_mb))
    return replace(function, engine=Engine.FAKE, source="", args=args, env={}, server="", command=(), park=Park.STOP)


def _mark(path: Path) -> tuple[int, int, int]:
    """Return a value that changes whenever a file is written or replaced."""
    try:
        stat = path.stat()
    except OSError:
        return (0, 0, 0)
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)
