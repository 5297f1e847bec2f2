"""Fixtures: a compiled stub of NVML."""

from pathlib import Path

import psutil
import pytest

from tests.platform.host.nvml_stub import OTHER_CHILDREN, Tell, built


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the compiled stub."""
    return built(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tell:
    """The environment with the stub. Call it with the lines of the stub's new script."""
    script = tmp_path / "script"
    monkeypatch.setenv("LD_LIBRARY_PATH", str(stub))
    monkeypatch.setenv("NVML_STUB", str(script))

    def tell(*lines: str) -> None:
        temporary = script.with_suffix(".new")
        temporary.write_text("".join(f"{line}\n" for line in lines))
        temporary.replace(script)

    tell()
    return tell


@pytest.fixture(autouse=True)
def other_children() -> None:
    """Record the children of other tests."""
    OTHER_CHILDREN.clear()
    OTHER_CHILDREN.update(p.pid for p in psutil.Process().children())
