"""What went wrong with each function, and when to try again."""

import msgspec
import pytest
from msgspec.structs import replace

from cortex.platform.record import Cause, Failure, FailureKind
from cortex.platform.scheduling.failures import (
    EARLY_S,
    LONGEST_BACKOFF_S,
    MOST_FAILURES,
    Failures,
    Incident,
    evidence_in,
)
from tests.support.factories import an_instance

CRASHED = an_instance(function="f", revision="r1")


def after(*kinds: FailureKind, now: float = 100.0) -> Failure:
    """The last failure after these, all at the same time."""
    failures = Failures()
    return [failures.add(CRASHED, Incident("why", kind), now) for kind in kinds][-1]


@pytest.mark.parametrize(
    ("crashes", "waits"),
    [(1, 0.0), (2, 0.0), (3, 60.0), (4, 120.0), (5, 240.0), (7, 960.0), (8, 1800.0), (9, 1800.0)],
)
def test_from_the_third_crash_in_a_row_starts_back_off(crashes: int, waits: float) -> None:
    failure = after(*[FailureKind.CRASH] * crashes, now=100.0)

    assert failure.count == crashes
    assert failure.retry_at == (100.0 + waits if waits else 0.0)


def deaths(*after_ready_s: float) -> Failure:
    """The last failure after workers died so long after they were ready, each at 100 s."""
    failures = Failures()
    return [failures.add(replace(CRASHED, ready=100.0 - s), Incident("died", died=True), 100.0) for s in after_ready_s][
        -1
    ]


def test_a_worker_that_had_served_is_no_failed_start_however_often_it_dies() -> None:
    failure = deaths(*[EARLY_S] * 50)

    assert (failure.count, failure.early, failure.retry_at) == (0, 0, 0.0)


@pytest.mark.parametrize(("early", "waits"), [(1, 0.0), (5, 0.0), (6, 60.0), (7, 120.0), (60, LONGEST_BACKOFF_S)])
def test_workers_that_die_right_after_ready_again_and_again_back_off(early: int, waits: float) -> None:
    failure = deaths(*[0.5] * early)

    assert (failure.count, failure.early) == (0, early)
    assert failure.retry_at == (100.0 + waits if waits else 0.0)


def test_a_death_while_serving_does_not_change_a_back_off_of_failed_starts() -> None:
    failures = Failures()
    for _ in range(3):
        failures.add(CRASHED, Incident("why"), 100.0)

    failure = failures.add(replace(CRASHED, ready=110.0), Incident("died", died=True), 150.0)

    assert (failure.count, failure.retry_at) == (3, 160.0)


def test_running_out_of_memory_counts_as_a_crash() -> None:
    short, crash = FailureKind.OUT_OF_MEMORY, FailureKind.CRASH

    failure = after(short, crash, short, now=100.0)

    assert (failure.kind, failure.count, failure.retry_at) == (short, 3, 160.0)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", True),
        ("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory", True),
        ("llama_model_load: error loading model: failed to allocate CPU buffer", True),
        ("ValueError: No available memory for the cache blocks.", True),
        ("MemoryError", True),
        ("no such file or directory", False),
        ("", False),
    ],
)
def test_workers_say_in_their_own_words_that_memory_ran_out(line: str, says: bool) -> None:
    assert (evidence_in(["loading", line]).cause is Cause.OUT_OF_MEMORY) is says


def test_a_row_that_never_ends_still_waits_no_longer_than_the_longest() -> None:
    failures = Failures.restored([Failure(function="f", revision="r1", instance="one", reason="why", at=0, count=5000)])

    failure = failures.add(CRASHED, Incident("why"), 100.0)

    assert failure.retry_at == 100.0 + LONGEST_BACKOFF_S


@pytest.mark.parametrize("kind", [FailureKind.ROOM, FailureKind.WEIGHTS, FailureKind.CANCELLED])
def test_a_failure_other_than_a_crash_neither_counts_nor_backs_off(kind: FailureKind) -> None:
    assert after(kind, kind, kind, kind).count == 0
    assert after(kind, kind, kind, kind).retry_at == 0.0


@pytest.mark.parametrize("kind", [FailureKind.ROOM, FailureKind.WEIGHTS, FailureKind.CANCELLED])
def test_a_failure_other_than_a_crash_does_not_end_a_back_off(kind: FailureKind) -> None:
    crash = FailureKind.CRASH

    failure = after(crash, crash, crash, kind, now=100.0)

    assert (failure.kind, failure.count, failure.retry_at) == (kind, 3, 160.0)


def test_a_failure_holds_the_cause_and_number_of_the_last_lines_but_none_of_their_text() -> None:
    failures = Failures()
    lines = [*(f"prompt {n}" for n in range(29)), "OSError: [Errno 98] Address already in use: my-prompt"]

    failure = failures.add(CRASHED, Incident("exited with 1", evidence=evidence_in(lines)), 100.0)

    assert failures.of("f", "r1") == failure
    assert failure == Failure(
        function="f",
        revision="r1",
        instance="one",
        reason="exited with 1: its port is in use",
        at=100.0,
        cause=Cause.PORT_IN_USE,
        lines=20,
    )
    assert b"prompt" not in msgspec.json.encode(failure)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", Cause.OUT_OF_MEMORY),
        ("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory", Cause.OUT_OF_MEMORY),
        ("ValueError: No available memory for the cache blocks.", Cause.OUT_OF_MEMORY),
        ("OSError: [Errno 28] No space left on device", Cause.DISK_FULL),
        ("main: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 20001", Cause.PORT_IN_USE),
        ("RuntimeError: No CUDA GPUs are available", Cause.NO_DEVICE),
        ("CUDA error: no kernel image is available for execution on the device", Cause.NO_DEVICE),
        ("ModuleNotFoundError: No module named 'vllm'", Cause.MISSING_LIBRARY),
        ("llama-server: error while loading shared libraries: libcudart.so.12", Cause.MISSING_LIBRARY),
        ("api_server.py: error: unrecognized arguments: --max-modl-len", Cause.BAD_ARGUMENT),
        ("error: invalid argument: --ctx-sizes", Cause.BAD_ARGUMENT),
        (
            "ValueError: The model's max seq len (131072) is larger than the maximum number of tokens that can be "
            "stored in KV cache (65536).",
            Cause.CONTEXT_TOO_LARGE,
        ),
        (
            "llama_model_load: error loading model: unknown model architecture: 'novel'",
            Cause.UNSUPPORTED_MODEL,
        ),
        ("ValueError: Model architectures ['Novel'] are not supported for now.", Cause.UNSUPPORTED_MODEL),
        ("gguf_init_from_file_impl: invalid magic characters: 'junk', expected 'GGUF'", Cause.BAD_WEIGHTS),
        ("safetensors_rust.SafetensorError: Error while deserializing header", Cause.BAD_WEIGHTS),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/w/config.json'", Cause.MISSING_FILE),
        ("PermissionError: [Errno 13] Permission denied: '/dev/nvidia0'", Cause.NO_PERMISSION),
        ("Segmentation fault", Cause.UNKNOWN),
    ],
)
def test_a_cause_is_read_off_the_engines_own_words(line: str, cause: Cause) -> None:
    assert evidence_in(["INFO: starting", line, "see above"]).cause is cause


def test_an_older_revision_says_nothing_about_a_newer_one() -> None:
    failures = Failures()
    failures.add(CRASHED, Incident("why"), 100.0)

    assert failures.of("f", "r2") is None


def test_a_new_revision_begins_a_new_row() -> None:
    failures = Failures()
    for _ in range(3):
        failures.add(CRASHED, Incident("why"), 100.0)

    failure = failures.add(an_instance(function="f", revision="r2"), Incident("why"), 100.0)

    assert (failure.count, failure.retry_at) == (1, 0.0)


def test_after_failures_are_removed_the_count_starts_again() -> None:
    failures = Failures()
    failures.add(CRASHED, Incident("why"), 100.0)

    failures.forget("f")
    failures.forget("never failed")

    assert failures.all() == ()


def test_only_declared_functions_are_remembered() -> None:
    failures = Failures()
    failures.add(CRASHED, Incident("why"), 100.0)
    failures.add(an_instance(function="g"), Incident("why"), 100.0)

    failures.keep_only(["g", "h"])

    assert [f.function for f in failures.all()] == ["g"]


def test_the_oldest_failure_is_forgotten_first() -> None:
    failures = Failures()
    for n in range(MOST_FAILURES):
        failures.add(an_instance(function=f"f{n}"), Incident("why"), float(n))
    failures.add(an_instance(function="f0"), Incident("why"), 900.0)

    failures.add(an_instance(function="new"), Incident("why"), 901.0)

    assert len(failures.all()) == MOST_FAILURES
    assert [f.function for f in failures.all()][:1] == ["f2"]
    assert [f.function for f in failures.all()][-2:] == ["f0", "new"]


def test_failures_outlive_the_agent() -> None:
    earlier = after(FailureKind.CRASH, FailureKind.CRASH)

    failure = Failures.restored([earlier]).add(CRASHED, Incident("why"), 500.0)

    assert (failure.count, failure.retry_at) == (3, 560.0)
