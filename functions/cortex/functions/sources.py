"""Where a function's weights come from, as a value read from its `source`, `revision` and `quant`.

    /srv/models/x.gguf, ~/x, ./x    a path on the host
    demo:harbour                    the small model that cortex writes itself
    org/name                        a repository on the HuggingFace hub: all an engine needs of it
    org/name:folder/file.gguf       one file of it; of a split GGUF, all parts
    org/name + quant = "Q4_K_M"     the GGUF of it with that tag; `org/name:Q4_K_M` says the same
    org/name + mmproj = "FILE"      a GGUF of it, and its vision encoder

Two functions with equal sources share the files on a host, and one download brings them.
"""

import hashlib
import re

from msgspec import Struct

from cortex.functions.spec import Engine, Function

DEMO = "demo:"
_FILE = re.compile(r"\.(?:gguf|safetensors|bin|pth?)$", re.IGNORECASE)
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}")


class BadSource(Exception):
    """The `source` is nothing that weights can come from; the text says what it could be."""


class Nothing(Struct, frozen=True, tag="nothing"):
    """There are no weights: the engine pretends, or its command brings its own."""


class Local(Struct, frozen=True, tag="local"):
    """A file or folder that is on the host already, or never will be."""

    path: str


class Demo(Struct, frozen=True, tag="demo"):
    """The model that cortex writes itself."""

    name: str

    def __str__(self) -> str:
        return DEMO + self.name


class Repo(Struct, frozen=True, kw_only=True, tag="repo"):
    """Files of a repository on the hub. At most one of `file` and `quant` is set."""

    repo: str
    revision: str = ""
    """A branch, tag or commit; empty: the main branch, as it was when it was fetched."""
    file: str = ""
    quant: str = ""
    gguf: bool = False
    """What is wanted is one model in GGUF, not the whole repository."""
    also: str = ""
    """A file of it that comes along: the vision encoder."""

    def __str__(self) -> str:
        part = self.file or self.quant
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{at}" + (f":{part}" if part else "")

    @property
    def key(self) -> str:
        """A name for it that is a path segment; equal sources have equal keys."""
        said = f"{self.repo} {self.revision} {self.file} {self.quant} {self.gguf}"
        said += f" {self.also}" if self.also else ""
        return f"{self.repo.replace('/', '--')}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"


Source = Nothing | Local | Demo | Repo


def source_of(function: Function) -> Source:
    """Return where a function's weights come from. Raises BadSource."""
    engine, said = function.engine, function.weights
    if not function.has_weights:
        return Nothing()
    if said.startswith(DEMO):
        return Demo(said.removeprefix(DEMO))
    if said.startswith(("/", "~")):
        return Local(said)
    repo, colon, part = said.partition(":")
    if not colon and _FILE.search(said) and not said.startswith(".."):
        raise BadSource(f"'{said}' looks like a file: write ./{said} for one beside models.toml, or its whole path")
    if not _REPO.fullmatch(repo) or ".." in repo:
        raise BadSource(
            f"'{said}' is neither a path (/… or ./…) nor a HuggingFace repository (org/name): "
            "give the function a `source`"
        )
    if (colon and not part) or part.startswith("/") or ".." in part.split("/"):
        raise BadSource(f"'{said}' names no file of {repo}")
    file, tag = (part, "") if "." in part else ("", part)
    if tag and function.quant and tag.lower() != function.quant.lower():
        raise BadSource(f"'{said}' says {tag} and `quant` says {function.quant}")
    gguf = engine is Engine.LLAMACPP or file.endswith(".gguf") or bool(tag)
    # To vLLM and others `quant` is a method, not a file to choose.
    wanted = tag or (function.quant if engine is Engine.LLAMACPP and not file else "")
    mmproj = function.mmproj if engine is Engine.LLAMACPP and gguf else ""
    also = "" if mmproj.startswith(("/", "~")) else mmproj
    return Repo(repo=repo, revision=function.revision, file=file, quant=wanted, gguf=gguf, also=also)
