"""Which files of a repository, or of a folder, make up the weights that a function asks for. Pure.

A GGUF is one file, or several that are named `…-00001-of-00003.gguf`; an engine is given the first. Its tag, such
as Q4_K_M, stands in the file's name, or else in its folder's. A model for vLLM is a folder: its safetensors if it
has any, with all that describes them.
"""

import re
from collections.abc import Sequence

from msgspec import Struct

from cortex.functions.names import did_you_mean
from cortex.functions.sources import Repo

_PART = re.compile(r"(?P<stem>.+)-(?P<nth>\d{5})-of-(?P<of>\d{5})(?P<suffix>\.\w+)")
_TAG = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|BF16|FP?16|FP?32|MXFP4(?:_MOE)?|NVFP4))(?=$|[-._])",
    re.IGNORECASE,
)
_BESIDES = re.compile(r"(?:^|/)[^/]*(?:mmproj|imatrix)[^/]*$", re.IGNORECASE)
"""GGUF files that are no language model: vision encoders and quantisers' statistics."""
_OTHER_FORMS = re.compile(
    r"\.(?:bin|pt|pth|ckpt|h5|msgpack|onnx|onnx_data|gguf|tflite|ot|mlmodel)$|^(?:onnx|openvino|original|coreml|metal)/",
    re.IGNORECASE,
)
"""The same weights again, for other programs."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_SHOWN = 24


class File(Struct, frozen=True):
    """A file by its path in the repository; sizes in bytes."""

    path: str
    size: int


class Selection(Struct, frozen=True):
    """The files that are needed, and what an engine is given: one of them, or "" for their folder."""

    files: tuple[File, ...]
    entry: str = ""
    also: str = ""
    """The path of the file that comes along."""

    @property
    def size(self) -> int:
        """All of them together, in bytes."""
        return sum(f.size for f in self.files)


class NoSuchWeights(Exception):
    """Nothing there is what was asked for, or more than one thing; the text says what there is."""


def select(source: Repo, files: Sequence[File]) -> Selection:
    """Choose the files of a source from all there are, with the one that comes along. Raises NoSuchWeights."""
    selection = _model(source, files)
    if not source.also:
        return selection
    found = [f for f in files if f.path == source.also] or [f for f in files if f.path.endswith(f"/{source.also}")]
    if not found:
        like = [f.path for f in files if _BESIDES.search(f.path)]
        hint = did_you_mean(source.also, like) or f"; there is {_some(like)}"
        raise NoSuchWeights(f"{source.repo} has no mmproj {source.also}{hint}")
    return Selection((*selection.files, found[0]), selection.entry, found[0].path)


def _model(source: Repo, files: Sequence[File]) -> Selection:
    """Choose the files of the model:

    (1) a file that is named, with the other parts if it is split;
    (2) the GGUF with the tag that is asked for;
    (3) the only GGUF there is;
    (4) the whole model.

    Raises NoSuchWeights.
    """
    if source.file and not source.file.endswith(".gguf"):  # (1)
        return _named(source, files)
    if not source.gguf:  # (4)
        return _snapshot(source, files)
    models = _models(files)
    if source.file:  # (1)
        return _whole(source, _named_model(source, models, files))
    if source.quant:  # (2)
        found = [m for m in models if tag(m) == _normal(source.quant)]
        if not found:
            raise NoSuchWeights(f"{source.repo} has no GGUF with the tag {source.quant}; {_tags(models)}")
    else:  # (3)
        found = list(models)
        if not found:
            raise NoSuchWeights(f"{source.repo} has no GGUF file: llama.cpp needs one")
    if len(found) > 1:
        what = f"several GGUFs with the tag {source.quant}" if source.quant else "several GGUFs"
        say = f"name one in `source` ({source.repo}:FILE)" if source.quant else f"say which by `quant`; {_tags(models)}"
        raise NoSuchWeights(f"{source.repo} has {what} ({_some(found)}): {say}")
    return _whole(source, models[found[0]])


def tag(name: str) -> str:
    """Return the quantisation that the name of a GGUF tells, or "".

    >>> tag("Qwen3-8B-Q4_K_M.gguf"), tag("Q8_0/model-00001-of-00002.gguf"), tag("model.gguf")
    ('Q4_K_M', 'Q8_0', '')
    """
    for part in reversed(name.removesuffix(".gguf").split("/")):
        if found := _TAG.findall(part):
            return _normal(found[-1])
    return ""


def missing_parts(paths: Sequence[str]) -> list[str]:
    """Return the parts of split files that are not there although another part is."""
    there = set(paths)
    missing: set[str] = set()
    for path in paths:
        if part := _PART.fullmatch(path):
            every = (f"{part['stem']}-{n:05}-of-{part['of']}{part['suffix']}" for n in range(1, int(part["of"]) + 1))
            missing.update(p for p in every if p not in there)
    return sorted(missing)


def _models(files: Sequence[File]) -> dict[str, list[File]]:
    """The GGUF models by name, which for a split one is that of no part."""
    models: dict[str, list[File]] = {}
    for file in sorted(files, key=lambda f: f.path):
        if file.path.endswith(".gguf") and not _BESIDES.search(file.path):
            part = _PART.fullmatch(file.path)
            models.setdefault(f"{part['stem']}.gguf" if part else file.path, []).append(file)
    return models


def _named_model(source: Repo, models: dict[str, list[File]], files: Sequence[File]) -> list[File]:
    part = _PART.fullmatch(source.file)
    found = models.get(f"{part['stem']}.gguf" if part else source.file)
    if found is None:
        return list(_named(source, files).files)
    return found


def _named(source: Repo, files: Sequence[File]) -> Selection:
    found = [f for f in files if f.path == source.file]
    if not found:
        like = [f.path for f in files if f.path.endswith(source.file[source.file.rfind(".") :])]
        hint = did_you_mean(source.file, like) or f"; there is {_some(like)}"
        raise NoSuchWeights(f"{source.repo} has no file {source.file}{hint}")
    return Selection(tuple(found), source.file)


def _whole(source: Repo, parts: list[File]) -> Selection:
    if missing := missing_parts([f.path for f in parts]):
        raise NoSuchWeights(f"{source.repo} lacks parts of {parts[0].path}: {_some(missing)}")
    return Selection(tuple(parts), parts[0].path)


def _snapshot(source: Repo, files: Sequence[File]) -> Selection:
    safe = any(f.path.endswith(".safetensors") for f in files)
    wanted = [f for f in files if not (_OTHER_FORMS.search(f.path) if safe else f.path.endswith(".gguf"))]
    # Mistral's repositories hold their weights twice: once in its own arrangement.
    if any(re.fullmatch(r"model[^/]*\.safetensors", f.path) for f in wanted):
        wanted = [f for f in wanted if not re.fullmatch(r"consolidated[^/]*\.safetensors", f.path)]
    if not any(f.path.endswith(_WEIGHTS) for f in wanted):
        more = ': it has GGUFs, for `engine = "llamacpp"`' if _models(files) else ""
        raise NoSuchWeights(f"{source.repo} has no weights in it that the engine takes{more}")
    if missing := missing_parts([f.path for f in wanted]):
        raise NoSuchWeights(f"{source.repo} is not whole: {_some(missing)} is not there")
    return Selection(tuple(wanted))


def _normal(said: str) -> str:
    return re.sub(r"\bFP(?=16|32)", "F", said.upper())


def _tags(models: dict[str, list[File]]) -> str:
    found = sorted({t for m in models if (t := tag(m))})
    return f"it has {', '.join(found)}" if found else f"no file of it has a tag: {_some(list(models)) or 'none'}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) or "nothing"
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
