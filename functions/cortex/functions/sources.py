"""The source of a function's weights, from its `source`, `revision` and `quant`.

    /srv/models/x.gguf, ~/x, ./x    a path on the host
    demo:harbour                    the small model that cortex writes itself
    org/name                        a repository on the HuggingFace hub: all files that the engine needs
    org/name:folder/file.gguf       one of its files; of a split GGUF, all parts
    org/name + quant = "Q4_K_M"     its GGUF with that tag; `org/name:Q4_K_M` is equivalent
    org/name + mmproj = "FILE"      its GGUF, and its vision encoder

Functions with equal sources share one download and its files on a host.
"""

import hashlib
import re

from msgspec import Struct

from cortex.functions.spec import Engine, Function

DEMO = "demo:"
_FILE = re.compile(r"\.(?:gguf|safetensors|bin|pth?)$", re.IGNORECASE)
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}")


class BadSource(Exception):
    """The `source` is invalid; the message has the valid forms."""


class Nothing(Struct, frozen=True, tag="nothing"):
    """The function has no weights: its engine is the fake one, or its command has its own."""


class Local(Struct, frozen=True, tag="local"):
    """A file or folder on the host, which is never downloaded."""

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
    """A branch, tag or commit; empty: the main branch at the time of the download."""
    file: str = ""
    quant: str = ""
    gguf: bool = False
    """One model in GGUF instead of the whole repository."""
    also: str = ""
    """A file that comes along: the vision encoder."""

    def __str__(self) -> str:
        part = self.file or self.quant
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{at}" + (f":{part}" if part else "")

    @property
    def key(self) -> str:
        """Its name as a path segment; equal sources have equal keys."""
        text = f"{self.repo} {self.revision} {self.file} {self.quant} {self.gguf}"
        text += f" {self.also}" if self.also else ""
        return f"{self.repo.replace('/', '--')}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


Source = Nothing | Local | Demo | Repo


def source_of(function: Function) -> Source:
    """Return the source of a function's weights. Raises BadSource."""
    engine, text = function.engine, function.weights
    if not function.has_weights:
        return Nothing()
    if text.startswith(DEMO):
        return Demo(text.removeprefix(DEMO))
    if text.startswith(("/", "~")):
        return Local(text)
    repo, colon, part = text.partition(":")
    if not colon and _FILE.search(text) and not text.startswith(".."):
        raise BadSource(f"'{text}' looks like a file: write ./{text} for one beside models.toml, or its whole path")
    if not _REPO.fullmatch(repo) or ".." in repo:
        raise BadSource(
            f"'{text}' is neither a path (/… or ./…) nor a HuggingFace repository (org/name): "
            "give the function a `source`"
        )
    if (colon and not part) or part.startswith("/") or ".." in part.split("/"):
        raise BadSource(f"'{text}' names no file of {repo}")
    file, tag = (part, "") if "." in part else ("", part)
    if tag and function.quant and tag.lower() != function.quant.lower():
        raise BadSource(f"'{text}' and quant = '{function.quant}' contradict each other: remove one of them")
    gguf = engine is Engine.LLAMACPP or file.endswith(".gguf") or bool(tag)
    # For other engines than llama.cpp, `quant` is a method and does not select a file.
    quant = tag or (function.quant if engine is Engine.LLAMACPP and not file else "")
    mmproj = function.mmproj if engine is Engine.LLAMACPP and gguf else ""
    also = "" if mmproj.startswith(("/", "~")) else mmproj
    return Repo(repo=repo, revision=function.revision, file=file, quant=quant, gguf=gguf, also=also)
