"""What a key may store."""

from pathlib import Path

import pytest

from cortex.platform.settings import Gateway
from cortex.router.batches.calls import FolderCalls
from cortex.router.batches.folder import BLOCK, Folder
from cortex.router.errors import KeyFull
from cortex.router.routes.files import check_space
from tests.router.batches.batches import add_batch, entry, text

MIB = 1 << 20
GATEWAY = Gateway(files_of_key_mb=1)


async def test_a_key_may_store_what_is_left_of_its_space_and_no_more(tmp_path: Path) -> None:
    folder, calls = Folder(tmp_path), FolderCalls()
    add_batch(folder, text(entry("a")))
    left = MIB - 3 * BLOCK  # a file's value and content, and a batch's value

    await check_space(folder, calls, "k1", GATEWAY, left - 1)
    await check_space(folder, calls, "k2", GATEWAY, MIB - 1)
    with pytest.raises(KeyFull, match="files_of_key_mb") as refusal:
        await check_space(folder, calls, "k1", GATEWAY, left)

    assert refusal.value.fault().status("chat") == 403
    calls.close()
