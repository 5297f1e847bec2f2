"""A running cortex with one router worker, and one with two, which tests share."""

import json
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from cortex.platform.weights.demo_model import write_bigram
from tests.e2e.security.keyed import Keyed, started
from tests.e2e.workers import ORIGIN, ROOT_PATH, TWO
from tests.support import last_use, small_vllm
from tests.support.catalogues import aliases, entry, fake, gguf
from tests.support.fleet import Fleet
from tests.support.histogram import write_histogram
from tests.support.stack import Stack, free_port, own_redis

FOLDER = Path(__file__).parent
FAKE = [sys.executable, "-m", "cortex.platform.fake_engine", "--model={model}", "--host={host}", "--port={port}"]
SECRETS = {"HF_TOKEN": "hf_not_for_workers", "AWS_SECRET_ACCESS_KEY": "not-for-workers"}
"""In the environment of everything `cortex up` starts."""
ALPHA = "Alpha alder. Alpha acorn. Amber alder."
BRAVO = "Bravo birch. Bravo bramble. Brown birch."
WORDS = "A red boat lies still. The keeper lights a lamp at night. Fish swim under the pier. Bread is baked at dawn."


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of a module in one process, so its fixtures are set up once."""
    for item in items:
        if item.path.is_relative_to(FOLDER) and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Count the tests that share a running cortex."""
    last_use.expect(session.items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """End a running cortex after the last test that uses it."""
    result = yield
    last_use.done(item)
    return result


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models with no word in common, two that compare texts by their words, and a file that is no model."""
    folder = tmp_path_factory.mktemp("weights")
    write_bigram(folder / "alpha.gguf", ALPHA, name="alpha")
    write_bigram(folder / "bravo.gguf", BRAVO, name="bravo")
    write_histogram(folder / "embeds.gguf", WORDS, name="embeds")
    write_histogram(folder / "reranks.gguf", WORDS, name="reranks", rerank=True)
    (folder / "garbage.gguf").write_bytes(b"GGUF" + b"\xff" * 4096)
    return folder


@pytest.fixture(scope="session", params=[TWO])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Iterator[Stack]:
    """A running cortex: of two router workers, or as the module's `parametrize` says."""
    folder = tmp_path_factory.mktemp(f"stack{request.param}")
    alpha, bravo = str(weights / "alpha.gguf"), str(weights / "bravo.gguf")
    busy_port = free_port()
    catalogue = "\n".join(
        [
            entry("cortex/harbour", engine="llamacpp", source="demo:harbour"),
            gguf("tiny/alpha", alpha),
            gguf("tiny/bravo", bravo),
            gguf("tiny/embeds", str(weights / "embeds.gguf"), task="embed"),
            gguf("tiny/reranks", str(weights / "reranks.gguf"), task="rerank"),
            gguf("tiny/crowd", alpha, target_concurrency=4, context=4096),
            gguf("tiny/wide", alpha, target_concurrency=32, context=32768),
            gguf("tiny/killed", alpha),
            gguf("org/tiny", alpha, context=512, target_concurrency=2),
            gguf("cold", alpha),
            fake("scores", "--shape", "vllm"),
            fake("fake/patient", idle_after_s=600),
            fake("fake/brief", idle_after_s=30, keep_alive_max_s=3600),
            fake("fake/steps", "--answer", "one two three"),
            fake("fake/counted", "--answer", "one two three"),
            fake("fake/reaped", idle_after_s=1),
            fake("fake/held", idle_after_s=1),
            fake("fake/slow", "--load-s", "1.5"),
            fake("fake/wakes", "--load-s", "1.5"),
            fake("fake/slow-alone", "--load-s", "1.5"),
            fake("fake/streams", "--tps", "20", "--tokens", "400"),
            fake("fake/hangs", "--hang", "serving"),
            fake("fake/loads-long", "--load-s", "30"),
            fake("fake/echo", "--echo"),
            fake("fake/thinks", "--reasoning-tokens", "3", "--answer", "so it is"),
            fake("fake/tools", "--call-tool", "--shape", "vllm"),
            fake("fake/tools-llama", "--call-tool", "--shape", "llama"),
            gguf("tiny/clamps", alpha, context=1024, target_concurrency=1, on_long_prompt="clamp"),
            gguf("tiny/native", alpha, target_concurrency=1, native=["messages", "responses"]),
            fake("fake/fails", "--fail-status", "500"),
            fake("fake/pattern", "--refuse-pattern", "--call-tool"),
            fake("fake/cold", "--answer", "brr"),
            fake("fake/planned"),
            fake("fake/cut", "--cut-stream-after", "3", "--tps", "20"),
            fake("fake/small-queue", "--load-s", "3", queue=2),
            fake("fake/impatient", "--load-s", "4", start_timeout_s=0.5),
            fake("fake/stranger", "--wrong-model", "somebody-else"),
            fake("fake/cooled", "--tps", "10", "--tokens", "20"),
            fake("fake/grows", "--tps", "20", "--tokens", "400", max=2, target_concurrency=1, idle_after_s=2),
            fake("fake/dies", "--crash-on-load", "3", "--crash-message", "RuntimeError: wrong kind of weights"),
            gguf("broken/garbage", str(weights / "garbage.gguf")),
            gguf("broken/missing", str(weights / "missing.gguf")),
            fake("broken/port", "--port", str(busy_port)),
            entry("any/command", engine="command", command=[*FAKE, "--answer", "four five"], idle_after_s=60),
            fake("fake/told", env={"HF_TOKEN": "of its function"}),
            entry("broken/command", engine="command", command=["no-such-program", "--port", "{port}"]),
            entry("broken/engine", engine="vllm", source=alpha),
            aliases(
                {
                    "cortex/demo": "cortex/harbour",
                    "small": "tiny/alpha",
                    "crowd": "tiny/crowd",
                    "steps": "fake/steps",
                    "smaller": "small",
                }
            ),
        ]
    )
    with own_redis(folder) as redis_url:
        env = {"CORTEX_REDIS_URL": redis_url, "CORTEX_GATEWAY__RESPONSES_TTL_S": "600", **SECRETS}
        running = Stack(folder, catalogue, workers=request.param, env=env)
        running.taken_port = busy_port
        last_use.end_after("one-worker" if request.param == 1 else "two-workers", running.end)
        try:
            yield running
        finally:
            running.end()


@pytest.fixture(scope="session")
def empty_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running cortex of one router worker, for modules that need a catalogue of their own: each calls `serve`.

    Web pages of one origin may use it, also below a path, and uploads may be large.
    """
    folder = tmp_path_factory.mktemp("empty")
    (folder / "tmp").mkdir()
    with own_redis(folder) as redis_url:
        env = {
            "CORTEX_REDIS_URL": redis_url,
            "CORTEX_GATEWAY__CORS_ORIGINS": json.dumps([ORIGIN]),
            "CORTEX_GATEWAY__ROOT_PATH": ROOT_PATH,
            "CORTEX_GATEWAY__MAX_UPLOAD_MB": "250",
            "TMPDIR": str(folder / "tmp"),
        }
        running = Stack(folder, "models = []\n", env=env)
        last_use.end_after("empty-stack", running.end)
        try:
            yield running
        finally:
            running.end()


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """A cortex of two router workers with a key of every kind, for the group `security`."""
    with started(tmp_path_factory.mktemp("keyed")) as running:
        last_use.end_after("security", running.stack.end)
        yield running


@pytest.fixture(scope="session")
def vllm_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A host with what looks like vLLM, a base on it, and adapters: two, one of which has a second name, and two that
    cannot be loaded."""
    folder = tmp_path_factory.mktemp("vllm")
    adapters = folder / "adapters"
    for name in ("legal", "medical"):
        small_vllm.write_adapter(adapters / name)
    small_vllm.write_adapter(adapters / "broken", broken=True)
    catalogue = (
        entry("small", engine="vllm", source=str(small_vllm.write_weights(folder / "weights")), vram_mb=500)
        + entry("calm", variant_of="small", max_output_tokens=4)
        + "".join(entry(n, base="small", adapter=str(adapters / n)) for n in ("legal", "medical", "broken", "nowhere"))
        + entry("brief", base="small", adapter=str(adapters / "legal"), max_output_tokens=3)
    )
    agent = {
        "CORTEX_AGENT__ENGINES": json.dumps(
            [{"name": "vllm", "path": str(small_vllm.write_environment(folder / "engine"))}]
        ),
        "CORTEX_AGENT__DEVICES": json.dumps([{"name": "cpu", "vram_mb": 4000, "kind": "cpu"}]),
        "CORTEX_AGENT__LAUNCHER": "false",
    }
    with own_redis(folder) as url, Fleet(folder, url, catalogue, {"a": agent}) as running:
        last_use.end_after("small-vllm", running.end)
        yield running


@pytest.fixture(scope="session")
def gpu_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A host with one declared device, which has room for one large worker, and RAM for workers that sleep. For modules
    that need a catalogue of their own: each calls `serve`."""
    agent = {
        "CORTEX_AGENT__DEVICES": json.dumps([{"name": "pretended", "vram_mb": 24_576}]),
        "CORTEX_AGENT__PARK_RAM_MB": "100000",
        "CORTEX_AGENT__STOP_GRACE_S": "1",
    }
    folder = tmp_path_factory.mktemp("gpu")
    with own_redis(folder) as url, Fleet(folder, url, "models = []\n", {"a": agent}) as running:
        last_use.end_after("gpu-host", running.end)
        yield running
