"""Downloads from a hub over real HTTP: after any fault the weights are complete or missing."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortex.functions.sources import Repo, source_of
from cortex.functions.spec import Engine, Function
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.weights import store as weights
from cortex.platform.weights.hub import CHUNK, Hub, HubUnavailable, WeightsUnavailable, clean
from cortex.platform.weights.store import Stage
from tests.support.hub import FakeHub, fake_hub

BIG = random.Random(1).randbytes(3_000_000)
PARTS = {f"big/m-Q8_0-0000{n}-of-00003.gguf": random.Random(n).randbytes(400_000) for n in (1, 2, 3)}
SNAPSHOT = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": BIG[:900_000],
    "pytorch_model.bin": BIG[:900_000],
    "tokenizer.json": b"{}",
}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as running:
        running.repos["org/m"] = {"README.md": b"hello", "m-Q4_K_M.gguf": BIG, **PARTS}
        running.repos["org/snap"] = dict(SNAPSHOT)
        yield running


@pytest.fixture(autouse=True)
def no_token_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def function(source: str, engine: Engine = Engine.LLAMACPP, **keys: str) -> Function:
    return Function(id="a", engine=engine, source=source, **keys)  # type: ignore[arg-type]


def fetch(hub: FakeHub, target: Function, cache: Path, *, token: str = "", keep_free_mb: int = 0) -> list[Stage]:
    stages: list[Stage] = []
    client = Hub(weights.hub_cache(cache), endpoint=hub.url, token=token)
    weights.fetch(source_of(target), cache, client, stages.append, keep_free_mb=keep_free_mb)
    return stages


def require_found(target: Function, cache: Path) -> LocalWeights:
    local = weights.find(target, cache)
    assert local is not None
    return local


def test_a_gguf_is_fetched_by_its_tag_and_found_from_then_on(hub: FakeHub, tmp_path: Path) -> None:
    target = function("org/m", quant="Q4_K_M")
    assert weights.find(target, tmp_path) is None

    stages = fetch(hub, target, tmp_path)

    local = require_found(target, tmp_path)
    assert Path(local.path).read_bytes() == BIG
    assert (Path(local.path).name, local.size_mb) == ("m-Q4_K_M.gguf", 3)
    assert stages[-1] == Stage(len(BIG), len(BIG))
    assert hub.sent == {"m-Q4_K_M.gguf": len(BIG)}


def test_a_split_gguf_comes_with_all_its_parts(hub: FakeHub, tmp_path: Path) -> None:
    target = function("org/m:Q8_0")

    fetch(hub, target, tmp_path)

    first = Path(require_found(target, tmp_path).path)
    assert {f"big/{p.name}": p.read_bytes() for p in first.parent.iterdir()} == PARTS
    assert first.name == "m-Q8_0-00001-of-00003.gguf"


def test_a_whole_model_is_a_folder_without_the_same_weights_twice(hub: FakeHub, tmp_path: Path) -> None:
    target = function("org/snap", Engine.VLLM)

    fetch(hub, target, tmp_path)

    folder = Path(require_found(target, tmp_path).path)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_huggingface_tools_find_the_downloads_of_cortex(hub: FakeHub, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download, scan_cache_dir

    fetch(hub, function("org/m", quant="Q4_K_M"), tmp_path)

    cache = weights.hub_cache(tmp_path)
    path = hf_hub_download("org/m", "m-Q4_K_M.gguf", cache_dir=cache, local_files_only=True)
    assert Path(path).read_bytes() == BIG
    assert scan_cache_dir(cache).warnings == []


def test_an_unknown_tag_error_lists_the_tags_of_the_repository(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="no GGUF with the tag Q5_K_M; it has Q4_K_M, Q8_0"):
        fetch(hub, function("org/m", quant="Q5_K_M"), tmp_path)


def test_a_broken_download_resumes_where_it_broke(hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts["m-Q4_K_M.gguf"] = [1_000_000]
    target = function("org/m", quant="Q4_K_M")

    fetch(hub, target, tmp_path)

    assert Path(require_found(target, tmp_path).path).read_bytes() == BIG
    assert [s.range for s in hub.transfers("m-Q4_K_M.gguf")] == ["", f"bytes={CHUNK}-"]


def test_a_download_resumes_after_a_kill(hub: FakeHub, tmp_path: Path) -> None:
    hub.bytes_s = 2_000_000
    target = function("org/m", quant="Q4_K_M")
    script = (
        "import sys; from pathlib import Path; from tests.platform.weights.test_hub import *\n"
        "from cortex.platform.weights.hub import Hub\n"
        "cache = Path(sys.argv[1]); way = Hub(weights.hub_cache(cache))\n"
        "weights.fetch(Repo(repo='org/m', quant='Q4_K_M', gguf=True), cache, way, lambda s: print(s.done, flush=True))"
    )
    env = {**os.environ, "HF_ENDPOINT": hub.url}  # as an operator configures a mirror
    process = subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    while (line := process.stdout.readline()) and int(line) < 500_000:
        pass
    process.kill()
    process.wait()
    (partial,) = weights.hub_cache(tmp_path).glob("models--org--m/blobs/*.incomplete")
    partial_size = partial.stat().st_size
    hub.bytes_s = 0

    assert weights.find(target, tmp_path) is None
    fetch(hub, target, tmp_path)

    assert Path(require_found(target, tmp_path).path).read_bytes() == BIG
    assert hub.transfers("m-Q4_K_M.gguf")[-1].range == f"bytes={partial_size}-"
    assert partial_size >= 500_000


def test_without_range_support_a_download_starts_over(hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts["m-Q4_K_M.gguf"] = [1_000_000]
    hub.ranges = False
    target = function("org/m", quant="Q4_K_M")

    stages = fetch(hub, target, tmp_path)

    assert Path(require_found(target, tmp_path).path).read_bytes() == BIG
    assert stages[-1].done == len(BIG)


@pytest.mark.parametrize("wrong", [BIG[:-10], BIG + b"more", BIG[:-1] + b"!"], ids=["short", "long", "other"])
def test_wrong_content_is_rejected(hub: FakeHub, tmp_path: Path, wrong: bytes) -> None:
    hub.wrong["m-Q4_K_M.gguf"] = [wrong]
    target = function("org/m", quant="Q4_K_M")

    with pytest.raises(HubUnavailable) as failed:
        fetch(hub, target, tmp_path)
    assert "secret" not in str(failed.value)
    assert weights.find(target, tmp_path) is None
    fetch(hub, target, tmp_path)

    assert Path(require_found(target, tmp_path).path).read_bytes() == BIG


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_error_of_the_hub_is_transient(hub: FakeHub, tmp_path: Path, status: int) -> None:
    hub.faults["m-Q4_K_M.gguf"] = [status]
    target = function("org/m", quant="Q4_K_M")

    with pytest.raises(HubUnavailable, match=f"answers {status}"):
        fetch(hub, target, tmp_path)
    fetch(hub, target, tmp_path)

    assert require_found(target, tmp_path)


def test_a_429_is_retried(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults["m-Q4_K_M.gguf"] = [429]

    fetch(hub, function("org/m", quant="Q4_K_M"), tmp_path)

    assert len(hub.transfers("m-Q4_K_M.gguf")) == 2


def test_a_gated_repository_needs_a_token_that_only_the_hub_sees(hub: FakeHub, tmp_path: Path) -> None:
    hub.tokens["org/m"], hub.gated = "hf_secret", {"org/m"}
    target = function("org/m", quant="Q4_K_M")

    with pytest.raises(WeightsUnavailable, match=r"is gated: accept its terms .*`\[hub\] token_file`"):
        fetch(hub, target, tmp_path)
    with pytest.raises(WeightsUnavailable, match="instead of its current one") as refused:
        fetch(hub, target, tmp_path, token="hf_wrong")
    fetch(hub, target, tmp_path, token="hf_secret")

    assert require_found(target, tmp_path)
    assert {r.token for r in hub.requests if r.cdn} == {""}
    assert "hf_wrong" not in str(refused.value)


def test_a_missing_repository_is_not_a_transient_error(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="has no org/none, or if it is private, it needs a token") as unknown:
        fetch(hub, function("org/none"), tmp_path)
    with pytest.raises(WeightsUnavailable, match="no such revision: org/m at v9"):
        fetch(hub, function("org/m", quant="Q4_K_M", revision="v9"), tmp_path)

    assert not isinstance(unknown.value, HubUnavailable)


def test_an_unreachable_hub_error_names_the_by_hand_folder(tmp_path: Path) -> None:
    target = function("org/m", quant="Q4_K_M")
    client = Hub(weights.hub_cache(tmp_path), endpoint="http://127.0.0.1:9")

    with pytest.raises(HubUnavailable, match=f"cannot be reached .* put its files into {tmp_path}/by-hand/org/m"):
        weights.fetch(source_of(target), tmp_path, client, lambda _: None)


def test_offline_mode_sends_no_request_and_the_error_names_it(hub: FakeHub, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.platform.weights.test_hub import *\n"
        "cache = Path(sys.argv[1]); way = Hub(weights.hub_cache(cache), endpoint=sys.argv[2])\n"
        "try: weights.fetch(Repo(repo='org/m', quant='Q4_K_M', gguf=True), cache, way, print)\n"
        "except WeightsUnavailable as error: print(type(error).__name__, error)"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}

    completed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), hub.url], env=env, capture_output=True, text=True, check=False
    )

    assert "org/m is not on this host, and HF_HUB_OFFLINE forbids fetching it" in completed.stdout
    assert f"put its files into {tmp_path}/by-hand/org/m" in completed.stdout
    assert completed.stdout.startswith("WeightsUnavailable")
    assert hub.requests == []


def test_by_hand_files_are_used_once_complete(tmp_path: Path) -> None:
    folder = tmp_path / "by-hand" / "org" / "m"
    folder.mkdir(parents=True)
    (folder / "m-Q8_0-00001-of-00002.gguf").write_bytes(b"GGUF")
    target = function("org/m", quant="Q8_0")

    half = weights.find(target, tmp_path)
    (folder / "m-Q8_0-00002-of-00002.gguf").write_bytes(b"GGUF")

    assert half is None
    assert require_found(target, tmp_path).path == str(folder / "m-Q8_0-00001-of-00002.gguf")


def test_without_the_hub_files_of_other_tools_are_used(hub: FakeHub, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    for name in SNAPSHOT:
        hf_hub_download("org/snap", name, cache_dir=weights.hub_cache(tmp_path), endpoint=hub.url)
    target = function("org/snap", Engine.VLLM)
    offline = Hub(weights.hub_cache(tmp_path), endpoint="http://127.0.0.1:9")

    weights.fetch(source_of(target), tmp_path, offline, lambda _: None)

    assert (Path(require_found(target, tmp_path).path) / "model.safetensors").read_bytes() == SNAPSHOT[
        "model.safetensors"
    ]


def test_a_branch_stays_at_its_commit_until_the_next_fetch(hub: FakeHub, tmp_path: Path) -> None:
    target = function("org/m", quant="Q4_K_M")
    fetch(hub, target, tmp_path)
    first = require_found(target, tmp_path)
    hub.repos["org/m"] = {"m-Q4_K_M.gguf": BIG[:2_000_000]}

    unchanged = require_found(target, tmp_path)
    fetch(hub, target, tmp_path)

    assert unchanged == first
    assert require_found(target, tmp_path).size_mb == 2


def test_a_truncated_file_counts_as_missing(hub: FakeHub, tmp_path: Path) -> None:
    target = function("org/m", quant="Q4_K_M")
    fetch(hub, target, tmp_path)

    os.truncate(require_found(target, tmp_path).path, 1000)

    assert weights.find(target, tmp_path) is None


def test_a_disk_that_is_too_small_fails_before_any_transfer(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match=r"org/m:Q4_K_M needs 3 MiB of disk in .* stay free"):
        fetch(hub, function("org/m", quant="Q4_K_M"), tmp_path, keep_free_mb=2**40)

    assert hub.transfers("m-Q4_K_M.gguf") == []


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a file system needs root")
def test_a_disk_that_fills_up_during_a_fetch_fails_and_leaves_no_complete_weights(hub: FakeHub, tmp_path: Path) -> None:
    script = """
import sys; from pathlib import Path; from tests.platform.weights.test_hub import *
small = Path(sys.argv[1]); way = Hub(weights.hub_cache(small), endpoint=sys.argv[2])
def fill_up(_):  # another program fills the disk after the start
    (small / "other").write_bytes(b"x" * 2_000_000)
try:
    weights.fetch(Repo(repo="org/m", quant="Q4_K_M", gguf=True), small, way, fill_up)
except WeightsUnavailable as error:
    print(type(error).__name__, error, weights.find(function("org/m", quant="Q4_K_M"), small))
"""
    mounted = 'mount -t tmpfs -o size=4m none "$1" && exec "$0" -c "$3" "$1" "$2"'
    argv = ["unshare", "-m", "sh", "-c", mounted, sys.executable, str(tmp_path), hub.url, script]

    completed = subprocess.run(argv, capture_output=True, text=True, check=False)

    assert completed.stdout == (
        "WeightsUnavailable m-Q4_K_M.gguf of org/m cannot be written: No space left on device None\n"
    )


def test_a_mirror_cannot_write_outside_the_cache(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["org/m"] = {"../../../../evil-Q4_K_M.gguf": BIG, "/tmp/evil-Q4_K_M.gguf": BIG}

    with pytest.raises(WeightsUnavailable, match="no GGUF"):
        fetch(hub, function("org/m", quant="Q4_K_M"), tmp_path)


def test_memory_is_estimated_from_the_head_of_a_file_on_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    from cortex.platform.settings import Agent, Settings
    from cortex.platform.settings import Hub as HubSettings
    from cortex.platform.weights.demo_model import write_bigram
    from cortex.platform.weights.estimation import estimate_memory

    write_bigram(tmp_path / "m.gguf", "One two. Two three.", name="m")
    hub.repos["org/tiny"] = {"m.gguf": (tmp_path / "m.gguf").read_bytes() + bytes(5_000_000)}
    hub.repos["org/snap"]["config.json"] = b'{"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}'
    settings = Settings(agent=Agent(cache_dir=str(tmp_path / "cache")), hub=HubSettings(endpoint=hub.url))

    gguf = estimate_memory(function("org/tiny"), settings)
    snap = estimate_memory(Function(id="b", engine=Engine.VLLM, source="org/snap", context=1024), settings)

    assert (gguf.weights_mb, gguf.tokens, gguf.here) == (5, 32768, False)
    assert "1 layers × 1 heads × (32 + 32)" in gguf.formula
    assert "2 layers × 4 heads × (16 + 16)" in snap.formula
    assert hub.sent["m.gguf"] <= 2**20


def test_queries_of_urls_are_removed_from_messages() -> None:
    assert clean("cannot GET https://cdn.x/f?X-Signature=secret\nnow") == "cannot GET https://cdn.x/f now"


def test_the_token_is_read_from_a_file(tmp_path: Path) -> None:
    from cortex.platform.weights.hub import token

    (tmp_path / "token").write_text("hf_abc\n")

    assert token(str(tmp_path / "token")) == "hf_abc"
    with pytest.raises(WeightsUnavailable, match="cannot be read"):
        token(str(tmp_path / "none"))


def test_sources_of_one_key_are_one_download() -> None:
    assert Repo(repo="org/m", quant="Q4_K_M", gguf=True) == source_of(function("org/m:Q4_K_M"))
