"""Counting in a process, the sum over processes, and Prometheus' text."""

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cortex.platform import meter, metrics
from cortex.platform.meter import Count, Meter, Snapshot, add_up, text


def samples(snapshot: Snapshot) -> dict[str, float]:
    """Return what Prometheus would read, by series."""
    matches = {}
    for family in text_string_to_metric_families(text(snapshot).decode()):
        for s in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(s.labels.items()))
            matches[f"{s.name}{{{labels}}}"] = s.value
    return matches


def test_prometheus_parses_counters_gauges_and_histograms() -> None:
    counted = Meter()
    counted.count(metrics.REQUESTS, ("org/model", "here"))
    counted.count(metrics.REQUESTS, ("org/model", "here"), 2)
    for value in (0.3, 7.0, 9999.0):
        counted.observe(metrics.DURATION, ("org/model", "here"), value)

    read = samples(counted.snapshot([Count(metrics.WAITING.name, ("org/model",), 4)]))

    assert read["cortex_requests_total{model=org/model,node=here}"] == 3
    assert read["cortex_requests_waiting{model=org/model}"] == 4
    assert read["cortex_request_duration_seconds_bucket{le=0.25,model=org/model,node=here}"] == 0
    assert read["cortex_request_duration_seconds_bucket{le=0.5,model=org/model,node=here}"] == 1
    assert read["cortex_request_duration_seconds_bucket{le=+Inf,model=org/model,node=here}"] == 3
    assert read["cortex_request_duration_seconds_count{model=org/model,node=here}"] == 3
    assert read["cortex_request_duration_seconds_sum{model=org/model,node=here}"] == pytest.approx(10006.3)


def test_a_value_equal_to_a_bound_is_in_that_bucket() -> None:
    counted = Meter()
    counted.observe(metrics.DURATION, ("m", "n"), 0.5)

    read = samples(counted.snapshot())

    assert read["cortex_request_duration_seconds_bucket{le=0.25,model=m,node=n}"] == 0
    assert read["cortex_request_duration_seconds_bucket{le=0.5,model=m,node=n}"] == 1


def test_adding_bucketed_values_equals_observing_them() -> None:
    one, other = Meter(), Meter()
    for value in (0.001, 0.2, 100.0):
        one.observe(metrics.INTER_TOKEN, ("m", "n"), value)
    counts = [0] * (len(metrics.INTER_TOKEN.buckets) + 1)
    counts[0], counts[9], counts[-1] = 1, 1, 1
    other.add_buckets(metrics.INTER_TOKEN, ("m", "n"), counts, 100.201)

    assert one.snapshot().spreads[0].counts == other.snapshot().spreads[0].counts


def test_snapshots_of_processes_are_summed_also_after_json() -> None:
    parts = []
    for number in (1, 2):
        counted = Meter()
        counted.count(metrics.REPLAYS, ("m", "n"), number)
        counted.observe(metrics.QUEUE_WAIT, ("m",), 3.0)
        raw = msgspec.json.encode(counted.snapshot([Count(metrics.PROCESSES.name, (), 1)]))
        parts.append(msgspec.json.decode(raw, type=Snapshot))

    read = samples(add_up(parts))

    assert read["cortex_replays_total{model=m,node=n}"] == 3
    assert read["cortex_queue_wait_seconds_count{model=m}"] == 2
    assert read["cortex_router_processes{}"] == 2


def test_series_over_the_limit_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "MOST_SERIES", 2)
    counted = Meter()

    for number in range(5):
        counted.count(metrics.DISCONNECTS, (f"m{number}",))
    counted.count(metrics.DISCONNECTS, ("m0",))

    snapshot = counted.snapshot()
    assert len(snapshot.counts) == 2
    assert snapshot.dropped == 3


def test_names_and_labels_follow_prometheus_rules() -> None:
    for metric in metrics.TABLE:
        assert metric.name.startswith("cortex_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert bool(metric.buckets) == (metric.kind == "histogram"), metric.name
        assert list(metric.buckets) == sorted(metric.buckets)
    assert len({m.name for m in metrics.TABLE}) == len(metrics.TABLE)


def test_the_rust_systems_series_keep_their_names_and_labels() -> None:
    labels = {m.name: set(m.labels) for m in metrics.TABLE}

    for name in (
        "cortex_requests_total", "cortex_request_errors_total", "cortex_cold_starts_total",
        "cortex_request_duration_seconds", "cortex_evictions_total", "cortex_time_to_first_token_seconds",
        "cortex_tokens_per_second",
    ):  # fmt: skip
        assert labels[name] == {"model", "node"}, name
