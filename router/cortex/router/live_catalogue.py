"""The catalogue as this router serves it, following its file.

A changed file takes effect without a restart. A file that does not stand leaves the old catalogue in force;
`problem` then says why. Editors and deployments truncate a file before they write it, and a full disk leaves it cut
off, so a change is read only once the file has stopped changing, and a file that has lost all its functions takes
effect only if it says `models = []`.
"""

import asyncio
import hashlib
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import asdict, replace

from cortex.functions.catalogue import Catalogue, CatalogueError, read
from cortex.functions.names import nearest
from cortex.functions.spec import Engine, Function, revision
from cortex.platform.api_keys import Principal
from cortex.platform.blocking_calls import BlockingCalls, NoAnswer
from cortex.platform.record import Override
from cortex.router.errors import FunctionNotFound, NotAllowed

log = structlog.get_logger()

LOOK_S = 0.4
MOST_LOOKS = 25
"""After so many looks at a file that changes between them, `problem` says so."""
READ_S = 10.0
"""How long the file may take to be read."""


class Target(Struct, frozen=True):
    """What a name stands for: a function, and the revision its instances must have."""

    function: Function
    revision: str


class LiveCatalogue:
    """Resolves names. `follow()` keeps it true to the file."""

    def __init__(self, path: Path, *, pretend: bool = False, admits_forbidden: bool = False) -> None:
        """Read the catalogue. Raises CatalogueError or OSError: a router does not start without one."""
        self._path, self._pretend, self._admits_forbidden = path, pretend, admits_forbidden
        self._file = BlockingCalls(READ_S, hint="is its mount hung?")
        self._taken: object = _mark(path)
        self._seen: object = self._taken
        self._looks = 0
        self._next: asyncio.Future[None] | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.problem = ""
        self._overrides: dict[str, Override] = {}
        text = _text(path)
        catalogue = _read(path, text)
        self.is_deliberate = _is_deliberate(catalogue, text)
        """Whether the file declares functions, or says that there are none. Agents are not told an empty catalogue
        that does not: every instance would be stopped for a file that was cut off."""
        self._take(catalogue)

    def find(self, name: str) -> Target:
        """Return what a name stands for. Raises FunctionNotFound."""
        target = self._targets.get(name)
        if target is None:
            raise FunctionNotFound(name, self.catalogue.nearest(name))
        return target

    def find_for(self, name: str, caller: Principal) -> Target:
        """Return what a name stands for, to a caller who may use it.

        A name that the caller may not use is answered as one that does not exist: nothing but the names that the
        caller may use decides about the hint and about the time it takes.

        Raises FunctionNotFound; NotAllowed where the operator lets clients see that there is such a name.
        """
        target = self._targets.get(name)
        if target is not None and caller.may_use(target.function.id):
            return target
        if target is not None and self._admits_forbidden:
            raise NotAllowed(f"the key '{caller.name}' may not use the model {name[:200]!r}")
        visible = (n for n, t in self._targets.items() if caller.may_use(t.function.id))
        raise FunctionNotFound(name, nearest(name, visible))

    def declared(self, function: str) -> Function | None:
        """Return a function as the file declares it, without what operators set at run time."""
        return self._declared.functions.get(function)

    def known(self, name: str) -> Target | None:
        """Return what a name stands for, if it is in the catalogue."""
        return self._targets.get(name)

    async def change(self, timeout_s: float, *others: asyncio.Future[Any]) -> None:
        """Wait until the catalogue changes or one of the others is done, at most so long."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        await asyncio.wait((self._next, *others), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    async def follow(self) -> None:
        """Look at the file again and again, and take every change that stands."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except NoAnswer as error:
                self.problem = f"{error}; the catalogue as it was last read is in force"
                self._taken = self._seen = None  # read it again as soon as it answers

    async def look(self) -> None:
        """Look at the file once:

        (1) it is as it was when it was last read;
        (2) it has changed since the last look: it may be half written, so wait for the next look;
        (3) it has stood for one look: read it, and again at the next looks if it changed meanwhile.

        Raises NoAnswer when its mount hangs.
        """
        mark = await self._file.look(str(self._path), "mark", partial(_mark, self._path))
        if mark == self._taken:  # (1)
            self._seen, self._looks = mark, 0
            return
        if mark != self._seen:  # (2)
            self._seen = mark
            self._looks += 1
            if self._looks == MOST_LOOKS:
                self._refuse("the file does not stop changing")
            return
        await self._reread(mark)  # (3)

    async def _reread(self, mark: tuple[int, int, int]) -> None:
        problem, deliberate = "", False
        try:
            text = await self._file.look(str(self._path), "read", partial(_text, self._path))
            catalogue = await self._file.look(str(self._path), "parse", partial(_read, self._path, text))
            deliberate = _is_deliberate(catalogue, text)
        except NoAnswer:
            raise
        except (CatalogueError, OSError, UnicodeDecodeError) as error:
            problem = str(error)
        self._seen = await self._file.look(str(self._path), "mark", partial(_mark, self._path))
        if self._seen != mark:
            return
        self._taken, self._looks = mark, 0
        if not problem and self.catalogue.functions and not deliberate:
            problem = "the file declares no function any more; to remove every function write `models = []`"
        if problem:
            self._refuse(problem)
            return
        self.problem, self.is_deliberate = "", deliberate
        self._take(catalogue)
        log.info("catalogue_taken", functions=len(catalogue.functions), aliases=len(catalogue.aliases))

    def _refuse(self, why: str) -> None:
        self.problem = f"{self._path}: the catalogue before the last change is still in force: {why}"
        log.error("catalogue_refused", why=why)

    def override(self, overrides: Mapping[str, Override]) -> None:
        """Take what operators set at run time, over the catalogue."""
        if overrides != self._overrides:
            self._overrides = dict(overrides)
            self._take(self._declared)

    def _take(self, catalogue: Catalogue) -> None:
        self._declared = catalogue
        if self._pretend:
            catalogue = pretended(catalogue)
        catalogue = overridden(catalogue, self._overrides)
        targets = {f.id: Target(f, revision(f)) for f in catalogue.functions.values()}
        for alias, function in catalogue.aliases.items():
            targets[alias] = targets[function]
        self.catalogue = catalogue
        self.digest = hashlib.sha256(msgspec.json.encode(catalogue, order="sorted")).hexdigest()[:16]
        self._targets = targets
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None
        self.on_change()


def load(path: Path) -> Catalogue:
    """Read a catalogue file. Raises CatalogueError, OSError or UnicodeDecodeError."""
    return _read(path, _text(path))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _read(path: Path, text: str) -> Catalogue:
    return read(text, file=path.name, folder=str(path.resolve().parent))


def _is_deliberate(catalogue: Catalogue, text: str) -> bool:
    """Whether a catalogue declares functions, or its text says that there are none: `models = []`."""
    return bool(catalogue.functions) or "models" in tomllib.loads(text.removeprefix("\ufeff"))


def pretended(catalogue: Catalogue) -> Catalogue:
    """Return the catalogue with every function on the fake engine, loading for a while and filling its memory."""
    return replace(catalogue, functions={f.id: _pretended(f) for f in catalogue.functions.values()})


def overridden(catalogue: Catalogue, overrides: Mapping[str, Override]) -> Catalogue:
    """Return the catalogue as operators have changed it at run time."""
    functions = {f.id: _overridden(f, overrides.get(f.id)) for f in catalogue.functions.values()}
    return replace(catalogue, functions=functions)


def _overridden(function: Function, override: Override | None) -> Function:
    if override is None:
        return function
    changes = {k: v for k, v in asdict(override).items() if v is not None}
    return replace(function, **changes)


def _pretended(function: Function) -> Function:
    if function.engine is Engine.FAKE:
        return function
    load_s = 1 + min(9, function.vram_mb // 8192)
    args = ("--load-s", str(load_s), "--tps", "40", "--tokens", "120", "--memory-mb", str(function.vram_mb))
    return replace(function, engine=Engine.FAKE, source="", args=args, env={}, server="", command=(), sleep=False)


def _mark(path: Path) -> tuple[int, int, int]:
    """Return what changes whenever a file is written or replaced."""
    try:
        stat = path.stat()
    except OSError:
        return (0, 0, 0)
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)
