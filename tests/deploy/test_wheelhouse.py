"""Builds that are no longer used leave the operator's machine."""

import os
from pathlib import Path

from deploy.wheelhouse import KEEP_BUILDS, remove_old_builds


def test_the_builds_used_last_stay_and_the_others_are_removed(tmp_path: Path) -> None:
    for n in range(KEEP_BUILDS + 2):
        (tmp_path / f"0.1.0+{n}.tar").touch()
        os.utime(tmp_path / f"0.1.0+{n}.tar", (n, n))
    os.utime(tmp_path / "0.1.0+0.tar", (100, 100))

    removed = remove_old_builds(tmp_path)

    assert {tar.name for tar in removed} == {"0.1.0+1.tar", "0.1.0+2.tar"}
    assert len(list(tmp_path.iterdir())) == KEEP_BUILDS and (tmp_path / "0.1.0+0.tar").exists()
