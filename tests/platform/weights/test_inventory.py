"""The inventory of a host's weights, and which of them may be removed."""

from pathlib import Path

import msgspec
import pytest

from cortex.functions.selection import File
from cortex.functions.sources import Repo, source_of
from cortex.functions.spec import Engine, Function
from cortex.platform.agent_messages import Remove, Stored
from cortex.platform.weights import inventory
from cortex.platform.weights import store as weights
from cortex.platform.weights.store import Manifest

Q4 = Function(id="f/q4", engine=Engine.LLAMACPP, source="org/m:Q4_K_M")
Q8 = Function(id="f/q8", engine=Engine.LLAMACPP, source="org/m:Q8_0")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two downloaded GGUFs of one repository that share a file."""
    for function in (Q4, Q8):
        source = source_of(function)
        assert isinstance(source, Repo)
        entry = f"m-{source.quant}.gguf"
        files = []
        for name in (entry, "shared.json"):
            blob = tmp_path / "hub" / "models--org--m" / "blobs" / name
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(b"GGUF" * 1000)
            pointer = tmp_path / "hub" / "models--org--m" / "snapshots" / "abc" / name
            pointer.parent.mkdir(parents=True, exist_ok=True)
            if not pointer.is_symlink():
                pointer.symlink_to(Path("../../blobs") / name)
            files.append(File(name, 4000))
        manifest = Manifest(source=source, commit="abc", entry=entry, files=tuple(files), at=1.0)
        path = weights.manifest_path(source, tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(manifest))
    (tmp_path / "hub" / "models--org--m" / ".cortex").touch()
    return tmp_path


def blobs(cache: Path) -> set[str]:
    return {p.name for p in (cache / "hub" / "models--org--m" / "blobs").glob("*")}


def remove(cache: Path, *names: str, declared: tuple[Function, ...] = (Q4, Q8), **more: bool) -> list[str]:
    stored = inventory.inventory(cache, declared, ())
    return [s.name for s in inventory.remove(cache, stored, Remove(names, **more), ()).removed]


def test_removing_one_file_keeps_the_other_complete(cache: Path) -> None:
    assert remove(cache, "f/q4") == ["org/m:Q4_K_M"]

    assert blobs(cache) == {"m-Q8_0.gguf", "shared.json"}
    assert weights.find(Q8, cache) is not None
    assert weights.find(Q4, cache) is None


def test_removing_the_last_file_removes_the_repository(cache: Path) -> None:
    assert sorted(remove(cache, "f/q4", "org/m:Q8_0")) == ["org/m:Q4_K_M", "org/m:Q8_0"]

    assert not (cache / "hub" / "models--org--m").exists()


def test_weights_without_a_declared_function_are_unused(cache: Path) -> None:
    assert remove(cache, unused=True, declared=(Q8,), dry_run=True) == ["org/m:Q4_K_M"]
    assert remove(cache, unused=True) == []
    assert remove(cache, unused=True, declared=(Q8,)) == ["org/m:Q4_K_M"]


def test_a_repository_of_another_tool_keeps_its_files(cache: Path) -> None:
    (cache / "hub" / "models--org--m" / ".cortex").unlink()

    assert remove(cache, "f/q4") == ["org/m:Q4_K_M"]
    assert "m-Q4_K_M.gguf" in blobs(cache)
    assert weights.find(Q4, cache) is None


def test_weights_in_use_or_being_fetched_stay_with_a_reason(cache: Path) -> None:
    local = weights.find(Q4, cache)
    assert local is not None
    busy = inventory.inventory(cache, (Q4, Q8), {local.path})

    reasons = inventory.remove(cache, busy, Remove(("f/q4", "f/q8", "f/none")), ["org/m:Q6_K"]).refusals

    assert "an instance runs from it" in reasons["org/m:Q4_K_M"]
    assert "org/m is being fetched" in reasons["org/m:Q8_0"]
    assert "no weights of this name" in reasons["f/none"]
    assert weights.find(Q8, cache) is not None


def test_an_unfinished_download_is_listed_and_removable(cache: Path) -> None:
    folder = cache / "hub" / "models--org--m"
    (folder / "blobs" / "abc.incomplete").write_bytes(b"x" * 10)

    (partial,) = [s for s in inventory.inventory(cache, (Q4,), ()) if s.kind == "partial"]
    assert (partial.name, partial.size, partial.functions) == ("org/m", 10, ("f/q4",))
    assert remove(cache, "org/m") == ["org/m"]
    assert blobs(cache) == {"m-Q4_K_M.gguf", "m-Q8_0.gguf", "shared.json"}


def test_files_outside_the_cache_are_never_removed(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "harbour.gguf"
    outside.write_bytes(b"GGUF")
    link = cache / "hub" / "models--org--evil"
    (outside.parent / "blobs").mkdir()
    (outside.parent / ".cortex").touch()
    link.symlink_to(outside.parent)
    local = Function(id="f/local", engine=Engine.LLAMACPP, source=str(outside))
    stored = inventory.inventory(cache, (local,), ())
    forged = Stored(name="demo:harbour", kind="demo", size=1, path=str(outside))
    evil = Stored(name="org/evil", kind="partial", size=1, path=str(link))

    assert "did not put" in inventory.remove(cache, stored, Remove(("f/local",)), ()).refusals[str(outside)]
    with pytest.raises(PermissionError):
        inventory.remove(cache, [forged], Remove(("demo:harbour",)), ())
    with pytest.raises(PermissionError):
        inventory.remove(cache, [evil], Remove(("org/evil",)), ())
    assert outside.exists()
