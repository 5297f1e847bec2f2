"""The package as users get it: three folders, one namespace, one wheel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent


def run(*argv: str | Path, cwd: Path = ROOT) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(a) for a in argv], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_standard_librarys_platform_is_not_shadowed_from_the_root() -> None:
    result = run(sys.executable, "-c", "import platform; print(platform.__file__, platform.system())")

    assert str(ROOT) not in result
    assert result.split()[-1] == os.uname().sysname


def test_no_folder_of_the_namespace_package_has_an_init() -> None:
    folders = [ROOT / area for area in ("functions", "platform", "router")]

    assert not [f for f in (*folders, *(f / "cortex" for f in folders)) if (f / "__init__.py").exists()]


def test_a_wheel_in_a_clean_environment_checks_a_catalogue(tmp_path: Path) -> None:
    run("uv", "build", "--wheel", "--out-dir", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    run("uv", "venv", "--python", sys.executable, tmp_path / "env")
    run("uv", "pip", "install", "--python", tmp_path / "env" / "bin" / "python", wheel)

    checked = run(tmp_path / "env" / "bin" / "cortex", "check", ROOT / "models.toml", cwd=tmp_path)

    assert "no problems" in checked
