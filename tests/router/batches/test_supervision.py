"""When a router starts a batch worker."""

from pathlib import Path

import pytest

from cortex.platform.settings import Gateway, Settings
from cortex.router.batches.folder import Folder
from cortex.router.batches.supervision import BatchWorker
from tests.router.batches.batches import add_batch, entry, text


class Looks:
    """Lets a supervisor look a number of times, without a pause."""

    def __init__(self, number: int) -> None:
        self._left = number

    def wait(self, _: float) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.mark.parametrize(("is_locked", "starts"), [(True, 0), (False, 3)])
def test_a_batch_worker_starts_unless_another_router_has_one(tmp_path: Path, is_locked: bool, starts: int) -> None:
    folder = Folder(tmp_path / "files")
    add_batch(folder, text(entry("a")))
    supervisor, started = BatchWorker(Settings(gateway=Gateway(files_dir=str(folder.path)))), []
    supervisor._stops = Looks(3)  # type: ignore[assignment]
    supervisor._run = lambda: started.append(1) or 0  # type: ignore[method-assign, func-returns-value]

    if is_locked:
        with folder.lock():
            supervisor._supervise()
    else:
        supervisor._supervise()

    assert len(started) == starts
