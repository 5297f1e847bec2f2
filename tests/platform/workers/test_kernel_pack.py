"""Packs of compiled code: what comes out is what went in, whole units only, whatever the sender does."""

import io
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.platform.workers import kernel_pack
from cortex.platform.workers.kernel_pack import BadPack, is_plain_name, packs, put_into, tidy, write

MIB = 1 << 20
AOT = "vllm/torch_compile_cache/torch_aot_compile/abc"
FILES = {
    f"{AOT}/rank_0_0/model": b"aot",
    "vllm/torch_compile_cache/0a1b/rank_0_0/backbone/graph.py": b"graph",
    "triton/K3Y/add.cubin": b"cubin",
    "inductor/uy/cuy.main.so": b"code",
    "inductor/fxgraph/kt/key/entry": b"entry",
}


def a_cache(path: Path, files: dict[str, bytes] | None = None) -> Path:
    """Write a compile cache."""
    for name, content in (FILES if files is None else files).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def content(cache: Path) -> dict[str, bytes]:
    """Return the files of a cache."""
    return {p.relative_to(cache).as_posix(): p.read_bytes() for p in cache.rglob("*") if p.is_file()}


def a_pack(path: Path, *entries: tarfile.TarInfo, data: bytes = b"x") -> Path:
    """Write a pack with any entries."""
    with tarfile.open(path, "w") as tar:
        for entry in entries:
            tar.addfile(entry, io.BytesIO(data) if entry.isreg() else None)
    return path


def an_entry(name: str, size: int = 1, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.linkname = size, kind, target
    return entry


def test_a_pack_brings_all_units_with_their_times(tmp_path: Path) -> None:
    cache = a_cache(tmp_path / "a" / "engines" / "e" / "d")
    os.utime(cache / "triton/K3Y/add.cubin", (5e8, 5e8))
    (cache / "triton" / "K3Y" / "x.lock").write_text("")
    (cache / "other").write_text("no unit")

    digest, size = write(cache, tmp_path / "a", MIB) or ("", 0)
    path = packs(tmp_path / "a")[digest]
    other = tmp_path / "b" / "engines" / "e" / "d"
    count = put_into(other, path, tmp_path / "b", MIB)

    assert (content(other), count, path.stat().st_size) == (FILES, len(FILES), size)
    assert (other / "triton/K3Y/add.cubin").stat().st_mtime == 5e8
    assert list(kernel_pack.folder_of(tmp_path / "b").iterdir()) == []


def test_units_that_are_there_stay(tmp_path: Path) -> None:
    write(a_cache(tmp_path / "a" / "c"), tmp_path / "a", MIB)
    (path,) = packs(tmp_path / "a").values()
    own = a_cache(tmp_path / "b" / "c", {f"{AOT}/rank_0_0/other": b"mine", "inductor/uy/cuy.main.so": b"mine"})

    count = put_into(own, path, tmp_path / "b", MIB)

    assert count == len(FILES) - 2
    assert (content(own)["inductor/uy/cuy.main.so"], f"{AOT}/rank_0_0/model" in content(own)) == (b"mine", False)


def test_links_are_neither_packed_nor_written_through(tmp_path: Path) -> None:
    secret, outside = tmp_path / "secret", tmp_path / "outside"
    secret.write_text("secret")
    outside.mkdir()
    cache = a_cache(tmp_path / "a" / "c", {"triton/one/file": b"1"})
    (cache / "triton" / "one" / "link").symlink_to(secret)
    (cache / "triton" / "two").symlink_to(tmp_path)
    (cache / "vllm").mkdir()
    (cache / "vllm" / "torch_compile_cache").symlink_to(tmp_path)

    write(cache, tmp_path / "a", MIB)
    (path,) = packs(tmp_path / "a").values()
    with tarfile.open(path) as tar:
        names = tar.getnames()
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "triton").symlink_to(outside)
    count = put_into(tmp_path / "b" / "c", path, tmp_path / "b", MIB)

    assert (names, count, list(outside.iterdir())) == (["triton/one/file"], 0, [])


@pytest.mark.parametrize(
    "entry",
    [
        an_entry("triton/../../x"),
        an_entry("/triton/x"),
        an_entry("triton/a//x"),
        an_entry("triton/.hidden"),
        an_entry("elsewhere/x"),
        an_entry("triton"),
        an_entry("triton/a\nb"),
        an_entry("triton/link", 0, tarfile.SYMTYPE, "/etc/passwd"),
        an_entry("triton/link", 0, tarfile.LNKTYPE, "triton/ok"),
        an_entry("triton/device", 0, tarfile.CHRTYPE),
        an_entry("triton/folder", 0, tarfile.DIRTYPE),
        an_entry("triton/large", 2 * MIB),
    ],
    ids=lambda entry: f"{entry.name} {entry.type.decode()}",
)
def test_a_pack_with_anything_else_is_refused_whole(tmp_path: Path, entry: tarfile.TarInfo) -> None:
    pack = a_pack(tmp_path / "pack", an_entry("triton/ok/file"), entry, data=b"x" * max(1, entry.size))

    with pytest.raises(BadPack):
        put_into(tmp_path / "c", pack, tmp_path, MIB)

    assert not (tmp_path / "c").exists()
    assert list(kernel_pack.folder_of(tmp_path).iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"no tar" * 200, b"\0" * 20])
def test_a_damaged_pack_brings_nothing(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "pack").write_bytes(damage)

    with pytest.raises(BadPack):
        put_into(tmp_path / "c", tmp_path / "pack", tmp_path, MIB)

    assert not (tmp_path / "c").exists()


def test_a_pack_that_was_cut_brings_nothing(tmp_path: Path) -> None:
    write(a_cache(tmp_path / "a" / "c", {"triton/one/file": bytes(50_000)}), tmp_path / "a", MIB)
    (path,) = packs(tmp_path / "a").values()
    os.truncate(path, 20_000)

    with pytest.raises((BadPack, OSError)):
        put_into(tmp_path / "b" / "c", path, tmp_path / "b", MIB)

    assert not (tmp_path / "b" / "c").exists()


def test_the_last_used_units_fit_first(tmp_path: Path) -> None:
    cache = a_cache(tmp_path / "c", {f"triton/{n}/file": bytes(300_000) for n in range(4)})
    for n in range(4):
        os.utime(cache / f"triton/{n}/file", (n, n))

    write(cache, tmp_path, MIB)
    (path,) = packs(tmp_path).values()

    with tarfile.open(path) as tar:
        assert tar.getnames() == ["triton/3/file", "triton/2/file", "triton/1/file"]


def test_a_cache_without_units_makes_no_pack(tmp_path: Path) -> None:
    assert write(tmp_path / "nowhere", tmp_path, MIB) is None
    assert packs(tmp_path) == {}


def test_old_packs_and_what_a_kill_left_are_removed(tmp_path: Path) -> None:
    folder = kernel_pack.folder_of(tmp_path)
    folder.mkdir()
    for name, at in (("0" * 64 + ".pack", 0.0), ("1" * 64 + ".pack", 9000.0), ("2" * 64 + ".pack", 9500.0)):
        (folder / name).write_bytes(bytes(600))
        os.utime(folder / name, (at, at))
    for name, at in (("a.new", 0.0), ("b.new", 9500.0)):
        (folder / name).mkdir()
        os.utime(folder / name, (at, at))

    tidy(tmp_path, 1000, 5000.0, 10_000.0)

    assert sorted(p.name for p in folder.iterdir()) == ["2" * 64 + ".pack", "b.new"]


@given(st.text(max_size=40))
def test_no_name_leaves_the_cache(name: str) -> None:
    path = Path("/cache/triton") / name

    if is_plain_name(f"triton/{name}"):
        assert os.path.normpath(path) == str(path)
        assert ".." not in path.parts


KILLED = """
import os, signal, sys
from pathlib import Path
from cortex.platform.workers import kernel_pack

calls, after = 0, int(sys.argv[2])

def counting(step):
    def call(*arguments):
        global calls
        calls += 1
        if calls > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*arguments)
    return call

owner, name = (kernel_pack, "_write") if sys.argv[1] == "write" else (Path, "rename")
setattr(owner, name, counting(getattr(owner, name)))
cache, pack, cache_dir = map(Path, sys.argv[3:])
kernel_pack.put_into(cache, pack, cache_dir, 1 << 20)
"""


@pytest.mark.parametrize(("step", "after", "units"), [("write", 2, 0), ("rename", 0, 0), ("rename", 2, 2)])
def test_a_kill_leaves_whole_units_only(tmp_path: Path, step: str, after: int, units: int) -> None:
    write(a_cache(tmp_path / "a" / "c"), tmp_path / "a", MIB)
    (path,) = packs(tmp_path / "a").values()
    cache = tmp_path / "b" / "c"

    killed = subprocess.run(
        [sys.executable, "-c", KILLED, step, str(after), cache, path, tmp_path / "b"], check=False, timeout=60
    )
    left = content(cache)
    again = put_into(cache, path, tmp_path / "b", MIB)

    assert killed.returncode == -signal.SIGKILL
    assert len(left) == units
    assert left.items() <= FILES.items()
    assert (again, content(cache)) == (len(FILES) - units, FILES)
