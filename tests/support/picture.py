"""Make `docs/status-page.png`: the status page of three hosts with declared devices, under a little load.

`just picture` runs it. It needs Chromium, and takes a minute and a half.
"""

import json
import sys
import tempfile
import threading
from pathlib import Path

import httpx
from playwright.sync_api import sync_playwright

from tests.browser.conftest import CHROMIUM, FLAGS
from tests.support import program
from tests.support.catalogues import aliases, fake
from tests.support.fleet import Fleet
from tests.support.stack import eventually, own_redis

PICTURE = Path(__file__).parents[2] / "docs" / "status-page.png"
WIDTH, HEIGHT = 1280, 900
SPEED = ("--tps", "60", "--tokens", "120")
LOAD_S = 60.0
MODELS = "\n".join(
    [
        fake("Qwen/Qwen3-8B", *SPEED, "--load-s", "2", vram_mb=19_000, idle_after_s=600),
        fake("Qwen/Qwen3-32B", *SPEED, "--load-s", "3", vram_mb=70_000, idle_after_s=900),
        fake("meta-llama/Llama-3.3-70B", *SPEED, "--load-s", "5", vram_mb=150_000, min_devices=2),
        fake("google/gemma-3-12b-it", *SPEED, "--load-s", "2", vram_mb=14_000, idle_after_s=300),
        fake("mistralai/Codestral-22B", *SPEED, "--load-s", "1000", vram_mb=16_000, idle_after_s=300),
        fake("BAAI/bge-m3", *SPEED, "--load-s", "1", vram_mb=3_000, idle_after_s=600),
        aliases({"chat": "Qwen/Qwen3-8B", "smart": "Qwen/Qwen3-32B", "code": "mistralai/Codestral-22B"}),
    ]
)
HOSTS = {"gpu-1": [24_576, 24_576], "gpu-2": [81_920, 81_920], "gpu-3": [24_576]}
CLIENTS = ("chat", "chat", "smart", "smart", "google/gemma-3-12b-it")
"""The model of each client, which sends one request after the other."""
STARTING = "code"
"""The model that is starting on the picture."""


def main() -> None:
    """Start the fleet, send requests, and take the picture while they run."""
    agents = {
        name: {"CORTEX_AGENT__DEVICES": json.dumps([{"name": f"GPU {n}", "vram_mb": mb} for n, mb in enumerate(sizes)])}
        for name, sizes in HOSTS.items()
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with own_redis(folder) as url, Fleet(folder, url, MODELS, agents) as fleet:
            ends = threading.Event()
            clients = [threading.Thread(target=_send, args=(fleet.url, model, ends)) for model in CLIENTS]
            for client in clients:
                client.start()
            try:
                fleet.chat("BAAI/bge-m3")
                eventually(lambda: len(fleet.instances_of_workers()) == 4, within_s=60, what="four workers")
                ends.wait(LOAD_S)  # the charts show minutes
                starting = threading.Thread(target=_send, args=(fleet.url, STARTING, ends))
                starting.start()
                clients.append(starting)
                eventually(lambda: len(fleet.instances_of_workers()) == 5, within_s=60, what="a start")
                _take(fleet.url)
            finally:
                ends.set()
                fleet.end()
                for client in clients:
                    client.join()


def _send(url: str, model: str, ends: threading.Event) -> None:
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello!"}]}
    while not ends.is_set():
        try:
            httpx.post(f"{url}/v1/chat/completions", json=body, timeout=None, trust_env=False)
        except httpx.TransportError:
            return


def _take(url: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce").new_page()
        page.goto(f"{url}/status")
        page.get_by_role("heading", name="Coming up").wait_for()
        page.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    sys.exit(program.run(main))
