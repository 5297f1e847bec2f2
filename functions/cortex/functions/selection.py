"""Selects the files of a repository or folder that make up a function's weights. Pure.

A GGUF is one file, or several named `…-00001-of-00003.gguf`, of which an engine gets the first. Its tag, such as
Q4_K_M, is in the name of the file or of its folder. A model for vLLM is a folder: its safetensors if it has any, with
their configuration.
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
_AUXILIARY = re.compile(r"(?:^|/)[^/]*(?:mmproj|imatrix)[^/]*$", re.IGNORECASE)
"""GGUF files that are not language models: vision encoders and quantisers' statistics."""
_OTHER_FORMATS = re.compile(
    r"\.(?:bin|pt|pth|ckpt|h5|msgpack|onnx|onnx_data|gguf|tflite|ot|mlmodel)$|^(?:onnx|openvino|original|coreml|metal)/",
    re.IGNORECASE,
)
"""The same weights in formats of other programs."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_MOST_NAMES = 24
"""File names in an error."""


class File(Struct, frozen=True):
    """A file by its path in the repository; sizes in bytes."""

    path: str
    size: int


class Selection(Struct, frozen=True):
    """The required files, and the `entry` for the engine: one of them, or "" for their folder."""

    files: tuple[File, ...]
    entry: str = ""
    also: str = ""
    """The path of the file that comes along."""

    @property
    def size(self) -> int:
        """The size of all files in bytes."""
        return sum(f.size for f in self.files)


class NoSuchWeights(Exception):
    """No file matches the source, or several do. The message lists the candidates."""


def select(source: Repo, files: Sequence[File]) -> Selection:
    """Choose the files of a source from all there are, with the one that comes along. Raises NoSuchWeights."""
    selection = _model(source, files)
    if not source.also:
        return selection
    companions = [f for f in files if f.path == source.also] or [f for f in files if f.path.endswith(f"/{source.also}")]
    if not companions:
        like = [f.path for f in files if _AUXILIARY.search(f.path)]
        hint = did_you_mean(source.also, like) or f"; there is {_some(like)}"
        raise NoSuchWeights(f"{source.repo} has no mmproj {source.also}{hint}")
    return Selection((*selection.files, companions[0]), selection.entry, companions[0].path)


def _model(source: Repo, files: Sequence[File]) -> Selection:
    """Choose the files of the model:

    (1) the named file, with its other parts if it is split;
    (2) the GGUF with the named tag;
    (3) the only GGUF;
    (4) the whole model.

    Raises NoSuchWeights.
    """
    if source.file and not source.file.endswith(".gguf"):  # (1)
        return _file(source, files)
    if not source.gguf:  # (4)
        return _snapshot(source, files)
    models = _models(files)
    if source.file:  # (1)
        return _whole(source, _named_model(source, models, files))
    if source.quant:  # (2)
        matches = [m for m in models if tag(m) == _normal(source.quant)]
        if not matches:
            raise NoSuchWeights(f"{source.repo} has no GGUF with the tag {source.quant}; {_tags(models)}")
    else:  # (3)
        matches = list(models)
        if not matches:
            raise NoSuchWeights(f"{source.repo} has no GGUF file: llama.cpp needs one")
    if len(matches) > 1:
        what = f"several GGUFs with the tag {source.quant}" if source.quant else "several GGUFs"
        fix = (
            f"name one in `source` ({source.repo}:FILE)" if source.quant else f"select one by `quant`; {_tags(models)}"
        )
        raise NoSuchWeights(f"{source.repo} has {what} ({_some(matches)}): {fix}")
    return _whole(source, models[matches[0]])


def tag(name: str) -> str:
    """Return the quantisation in the name of a GGUF, or "".

    >>> tag("Qwen3-8B-Q4_K_M.gguf"), tag("Q8_0/model-00001-of-00002.gguf"), tag("model.gguf")
    ('Q4_K_M', 'Q8_0', '')
    """
    for part in reversed(name.removesuffix(".gguf").split("/")):
        if tags := _TAG.findall(part):
            return _normal(tags[-1])
    return ""


def missing_parts(paths: Sequence[str]) -> list[str]:
    """Return the missing parts of split files of which another part exists."""
    present = set(paths)
    missing: set[str] = set()
    for path in paths:
        if part := _PART.fullmatch(path):
            every = (f"{part['stem']}-{n:05}-of-{part['of']}{part['suffix']}" for n in range(1, int(part["of"]) + 1))
            missing.update(p for p in every if p not in present)
    return sorted(missing)


def _models(files: Sequence[File]) -> dict[str, list[File]]:
    """Return the GGUF models by name; a split one is named without the part's number."""
    models: dict[str, list[File]] = {}
    for file in sorted(files, key=lambda f: f.path):
        if file.path.endswith(".gguf") and not _AUXILIARY.search(file.path):
            part = _PART.fullmatch(file.path)
            models.setdefault(f"{part['stem']}.gguf" if part else file.path, []).append(file)
    return models


def _named_model(source: Repo, models: dict[str, list[File]], files: Sequence[File]) -> list[File]:
    part = _PART.fullmatch(source.file)
    model = models.get(f"{part['stem']}.gguf" if part else source.file)
    if model is None:
        return list(_file(source, files).files)
    return model


def _file(source: Repo, files: Sequence[File]) -> Selection:
    matches = [f for f in files if f.path == source.file]
    if not matches:
        similar = [f.path for f in files if f.path.endswith(source.file[source.file.rfind(".") :])]
        hint = did_you_mean(source.file, similar) or f"; there is {_some(similar)}"
        raise NoSuchWeights(f"{source.repo} has no file {source.file}{hint}")
    return Selection(tuple(matches), source.file)


def _whole(source: Repo, parts: list[File]) -> Selection:
    if missing := missing_parts([f.path for f in parts]):
        raise NoSuchWeights(f"{source.repo} lacks parts of {parts[0].path}: {_some(missing)}")
    return Selection(tuple(parts), parts[0].path)


def _snapshot(source: Repo, files: Sequence[File]) -> Selection:
    safe = any(f.path.endswith(".safetensors") for f in files)
    selected = [f for f in files if not (_OTHER_FORMATS.search(f.path) if safe else f.path.endswith(".gguf"))]
    # Mistral's repositories have the weights twice, once in Mistral's own format.
    if any(re.fullmatch(r"model[^/]*\.safetensors", f.path) for f in selected):
        selected = [f for f in selected if not re.fullmatch(r"consolidated[^/]*\.safetensors", f.path)]
    if not any(f.path.endswith(_WEIGHTS) for f in selected):
        more = ': it has GGUFs, for `engine = "llamacpp"`' if _models(files) else ""
        raise NoSuchWeights(f"{source.repo} has no weights that the engine can load{more}")
    if missing := missing_parts([f.path for f in selected]):
        raise NoSuchWeights(f"{source.repo} is incomplete: it lacks {_some(missing)}")
    return Selection(tuple(selected))


def _normal(tag: str) -> str:
    return re.sub(r"\bFP(?=16|32)", "F", tag.upper())


def _tags(models: dict[str, list[File]]) -> str:
    tags = sorted({t for m in models if (t := tag(m))})
    return f"it has {', '.join(tags)}" if tags else f"none of its files has a tag: {_some(list(models))}"


def _some(names: Sequence[str]) -> str:
    text = ", ".join(names[:_MOST_NAMES]) or "nothing"
    return f"{text} and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else text
