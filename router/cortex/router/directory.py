"""The catalogue as this router serves it, following its file.

A changed file takes effect without a restart. A file that does not stand leaves the old catalogue in force;
`problem` then says why.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import asdict, replace

from cortex.functions.catalogue import Catalogue, CatalogueError, read
from cortex.functions.spec import Engine, Function, revision
from cortex.platform.api_keys import Principal
from cortex.platform.looks import Looks, NoAnswer
from cortex.platform.record import Override
from cortex.router.refusals import FunctionNotFound, NotAllowed

log = structlog.get_logger()

LOOK_S = 0.5
READ_S = 10.0
"""How long the file may take to be read."""


class Target(Struct, frozen=True):
    """What a name stands for: a function, and the revision its instances must have."""

    function: Function
    revision: str


class Directory:
    """Resolves names. `follow()` keeps it true to the file."""

    def __init__(self, path: Path, *, pretend: bool = False) -> None:
        """Read the catalogue. Raises CatalogueError or OSError: a router does not start without one."""
        self._path, self._pretend = path, pretend
        self._seen: object = _mark(path)
        self._looks = Looks(READ_S, hint="is its mount hung?")
        self.problem = ""
        self._overrides: dict[str, Override] = {}
        self._take(load(path))

    def find(self, name: str) -> Target:
        """Return what a name stands for. Raises FunctionNotFound."""
        target = self._targets.get(name)
        if target is None:
            raise FunctionNotFound(name, self.catalogue.nearest(name))
        return target

    def find_for(self, name: str, caller: Principal) -> Target:
        """Return what a name stands for, to a caller who may use it. Raises FunctionNotFound or NotAllowed."""
        target = self._targets.get(name)
        if target is None:
            near = (n for n in self.catalogue.nearest(name) if n in self._targets)
            raise FunctionNotFound(name, [n for n in near if caller.may_use(self._targets[n].function.id)])
        if not caller.may_use(target.function.id):
            raise NotAllowed(f"the key '{caller.name}' may not use the model {name[:200]!r}")
        return target

    def declared(self, function: str) -> Function | None:
        """Return a function as the file declares it, without what operators set at run time."""
        return self._declared.functions.get(function)

    def known(self, name: str) -> Target | None:
        """Return what a name stands for, if it is in the catalogue."""
        return self._targets.get(name)

    async def follow(self) -> None:
        """Look at the file twice a second and take every change that stands."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                mark = await self._looks.look(str(self._path), "mark", partial(_mark, self._path))
            except NoAnswer as error:
                self.problem = f"{error}; the catalogue as it was last read is in force"
                self._seen = None  # read it again as soon as it answers
                continue
            if mark != self._seen:
                self._seen = mark
                await self._reread()

    async def _reread(self) -> None:
        try:
            catalogue = await self._looks.look(str(self._path), "read", partial(load, self._path))
        except (CatalogueError, OSError, UnicodeDecodeError) as error:
            self.problem = f"{self._path}: the catalogue before the last change is still in force: {error}"
            log.error("catalogue_refused", why=str(error))
            return
        self.problem = ""
        self._take(catalogue)
        log.info("catalogue_taken", functions=len(catalogue.functions), aliases=len(catalogue.aliases))

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


def load(path: Path) -> Catalogue:
    """Read a catalogue file. Raises CatalogueError, OSError or UnicodeDecodeError."""
    return read(path.read_text(encoding="utf-8"), file=path.name, folder=str(path.resolve().parent))


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
