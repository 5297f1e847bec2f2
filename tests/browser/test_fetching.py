"""A download in the browser, from its first byte to the answer."""

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cortex.platform.weights.demo_model import write_bigram
from tests.browser.conftest import Open
from tests.support.catalogues import entry
from tests.support.hub import FakeHub, fake_hub
from tests.support.stack import Stack, eventually

FILE = "m-Q4_K_M.gguf"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    path = tmp_path_factory.mktemp("weights") / "alpha.gguf"
    write_bigram(path, "Alpha alder. Alpha acorn. Amber alder.", name="alpha")
    with fake_hub() as running:
        # What stands behind the tensors is nothing to llama.cpp.
        running.repos["org/remote"] = {FILE: path.read_bytes() + bytes(6_000_000)}
        yield running


@pytest.fixture(scope="module")
def stack(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("fetching")
    models = entry("w/remote", engine="llamacpp", source="org/remote", quant="Q4_K_M")
    running = Stack(folder, models, env={"CORTEX_HUB__ENDPOINT": hub.url})
    try:
        yield running
    finally:
        running.end()


def test_a_download_shows_progress_rate_and_remaining_time(
    stack: Stack, hub: FakeHub, open_page: Open, shot: Callable[..., None]
) -> None:
    hub.bytes_s = 600_000
    page: Any = open_page(stack)
    page.wait_for_selector('#link[data-state="live"]')
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(stack.chat("w/remote")), daemon=True)

    asking.start()
    coming = page.locator("#starts li", has_text="w/remote")
    coming.wait_for()
    going = re.compile(r"fetching: [\d.]+ \wiB of [\d.]+ MiB, \d+ KiB/s, \d+ %")
    text = eventually(lambda: (m := going.search(coming.inner_text())) and m[0], within_s=12, what="the download")
    left = coming.locator(".start-left time")
    eventually(lambda: left.count() and re.fullmatch(r"\d+ s", left.inner_text()), what="the time left, large")
    job = page.locator("#jobs li", has_text="org/remote")
    eventually(lambda: "iB/s" in job.inner_text() and " left" in job.inner_text(), what="the job")
    row = page.locator('#functions > tr[data-id="w/remote"]')
    assert row.get_attribute("data-state") == "fetching"
    assert "fetched in" in row.inner_text()
    assert "1 request held" in coming.inner_text()
    first = float(coming.locator("rect.fill").get_attribute("width").rstrip("%"))
    eventually(
        lambda: float(coming.locator("rect.fill").get_attribute("width").rstrip("%")) > first, what="the bar to grow"
    )
    shot(page, "fetching-laptop-light")
    hub.bytes_s = 0
    asking.join(30)

    assert answers[0].is_success, text
    page.wait_for_selector('#functions > tr[data-id="w/remote"][data-tone="idle"]')
    page.wait_for_selector("#starts li", state="detached")
    page.locator("#jobs li", has_text="done").wait_for()
