"""Which weights may be loaded: real files, real links."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from cortex.functions.spec import Engine
from cortex.platform.weights.load_policy import NotAllowed, keep_inside, refuse_pickles
from cortex.platform.weights.store import find
from tests.support.factories import a_function


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside.gguf").write_bytes(b"GGUF")
    (tmp_path / "root" / "model.gguf").write_bytes(b"GGUF")
    return tmp_path / "root"


def test_without_roots_weights_may_be_anywhere(root: Path) -> None:
    keep_inside(root.parent / "outside.gguf", [])


def test_with_roots_they_must_be_inside_of_one(root: Path) -> None:
    keep_inside(root / "model.gguf", ["/nowhere", str(root)])

    with pytest.raises(NotAllowed, match="outside of"):
        keep_inside(root.parent / "outside.gguf", [str(root)])


@pytest.mark.parametrize("way", ["../outside.gguf", "link.gguf", "folder/outside.gguf", "../root-too/model.gguf"])
def test_neither_dots_nor_links_nor_a_like_name_lead_out_of_a_root(root: Path, way: str) -> None:
    (root / "link.gguf").symlink_to(root.parent / "outside.gguf")
    (root / "folder").symlink_to(root.parent)
    (root.parent / "root-too").mkdir()
    (root.parent / "root-too" / "model.gguf").write_bytes(b"GGUF")

    with pytest.raises(NotAllowed):
        keep_inside(root / way, [str(root)])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "weights.pkl"])
def test_a_pickle_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")

    for path in (tmp_path, tmp_path / name):
        with pytest.raises(NotAllowed, match="allow_pickle"):
            refuse_pickles(path)


@pytest.mark.parametrize("beside", ["model.safetensors", "model.gguf"])
def test_a_pickle_beside_what_engines_take_first_is_no_reason_to_refuse(tmp_path: Path, beside: str) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    (tmp_path / beside).write_bytes(b"x")

    refuse_pickles(tmp_path)


def test_a_function_may_allow_them(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    function = a_function(engine=Engine.VLLM, source=str(tmp_path))

    with pytest.raises(NotAllowed):
        find(function, tmp_path)
    found = find(replace(function, allow_pickle=True), tmp_path)

    assert found is not None
    assert found.path == str(tmp_path)
