"""A real browser on a running cortex. `just test-browser` runs these; the default run leaves them out."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.catalogues import aliases, entry, fake
from tests.support.stack import Stack, own_redis

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
ARTIFACTS = Path(__file__).parents[2] / "artifacts"
SIZES = {"phone": (390, 844), "laptop": (1440, 900), "wall": (2560, 1440)}
DIES = ("--crash-on-load", "3", "--crash-message", "RuntimeError: CUDA error: out of memory")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip("apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


def grave_faults(page: Any) -> list[str]:
    """What axe finds that is serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    result = Axe().run(page).response["violations"]
    return [
        f"{v['id']}: {n['target']} {n['failureSummary']}"
        for v in result
        if v["impact"] in ("serious", "critical")
        for n in v["nodes"]
    ]


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Open the page in a size and a theme, logged in. A word in its console fails the test."""
    texts: list[str] = []
    with ExitStack() as contexts:

        def opened(stack: Stack, size: str = "laptop", theme: str = "light", **more: Any) -> Any:
            width, height = SIZES[size]
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce", **more
            )
            contexts.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(15_000)
            page.on("console", lambda message: texts.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: texts.append(f"error: {error}"))
            if more.get("java_script_enabled", True):
                page.goto(f"{stack.url}/status/login#key={stack.local_key()}")
                page.wait_for_url(f"{stack.url}/status")
            else:
                page.goto(f"{stack.url}/status")
            return page

        yield opened
    assert not texts


@pytest.fixture
def shot() -> Callable[[Any, str], None]:
    """Keep a picture of a page under artifacts/."""

    def take(page: Any, name: str, *, whole: bool = False) -> None:
        ARTIFACTS.mkdir(exist_ok=True)
        page.screenshot(path=ARTIFACTS / f"status-{name}.png", full_page=whole)

    return take


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A cortex with three pretended GPUs."""
    folder = tmp_path_factory.mktemp("browser")
    serves = ("--tps", "40", "--answer", "The harbour is quiet and the boats are in.")
    catalogue = "\n".join(
        [
            fake("org/small", *serves, "--load-s", "1", vram_mb=6000),
            fake("org/middle", *serves, "--load-s", "2", vram_mb=16000),
            fake("org/large", *serves, "--load-s", "3", vram_mb=60000, min_device_vram_mb=70000),
            fake("org/slow", *serves, "--load-s", "6", vram_mb=8000),
            fake("org/broken", *DIES, vram_mb=2000),
            entry("org/vast", engine="fake", vram_mb=900000),
            aliases({"small": "org/small", "slow": "org/slow"}),
        ]
    )
    with own_redis(folder) as url:
        running = Stack(folder, catalogue, env={"CORTEX_REDIS_URL": url}, more=("--devices", "2x24GB,1x80GB", "--fake"))
        try:
            yield running
        finally:
            running.end()
