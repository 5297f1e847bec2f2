"""Which weights may be loaded: real files, real links."""

import pickle
from pathlib import Path

import pytest
from msgspec.structs import replace

from cortex.functions.spec import Engine
from cortex.platform.weights.load_policy import NotAllowed, refuse_pickles, require_inside
from cortex.platform.weights.store import find
from tests.support.factories import a_function


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside.gguf").write_bytes(b"GGUF")
    (tmp_path / "root" / "model.gguf").write_bytes(b"GGUF")
    return tmp_path / "root"


def test_without_roots_weights_may_be_anywhere(root: Path) -> None:
    require_inside(root.parent / "outside.gguf", [])


def test_with_roots_weights_must_be_inside_one(root: Path) -> None:
    require_inside(root / "model.gguf", ["/nowhere", str(root)])

    with pytest.raises(NotAllowed, match="outside "):
        require_inside(root.parent / "outside.gguf", [str(root)])


@pytest.mark.parametrize("way", ["../outside.gguf", "link.gguf", "folder/outside.gguf", "../root-too/model.gguf"])
def test_dots_links_and_similar_names_do_not_lead_out_of_a_root(root: Path, way: str) -> None:
    (root / "link.gguf").symlink_to(root.parent / "outside.gguf")
    (root / "folder").symlink_to(root.parent)
    (root.parent / "root-too").mkdir()
    (root.parent / "root-too" / "model.gguf").write_bytes(b"GGUF")

    with pytest.raises(NotAllowed):
        require_inside(root / way, [str(root)])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "weights.pkl"])
def test_a_pickle_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")

    for path in (tmp_path, tmp_path / name):
        with pytest.raises(NotAllowed, match="allow_pickle"):
            refuse_pickles(path)


@pytest.mark.parametrize("neighbour", ["model.safetensors", "model.gguf"])
def test_a_pickle_next_to_a_safe_file_is_allowed(tmp_path: Path, neighbour: str) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    (tmp_path / neighbour).write_bytes(b"x")

    refuse_pickles(tmp_path)


def test_a_function_may_allow_pickles(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    function = a_function(engine=Engine.VLLM, source=str(tmp_path))

    with pytest.raises(NotAllowed):
        find(function, tmp_path)
    local = find(replace(function, allow_pickle=True), tmp_path)

    assert local is not None
    assert local.path == str(tmp_path)


def test_a_model_of_ctranslate2_is_not_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"\x06\0\0\0\x0c\0WhisperSpec")

    refuse_pickles(tmp_path)


@pytest.mark.parametrize(
    "content", [pickle.dumps({}), pickle.dumps({}, 0), b"PK\x03\x04", b"", b"\x06\0", b"\x06\0\0x"]
)
def test_what_may_be_a_pickle_counts_as_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.bin").write_bytes(content)

    with pytest.raises(NotAllowed):
        refuse_pickles(tmp_path)
