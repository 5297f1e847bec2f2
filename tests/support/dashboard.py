"""The Grafana dashboard: every panel in one table, from which `dashboard.json` is made (`just docs`).

What routers count is added up; what describes the fleet is the same at every router, so the maximum is taken.
"""

import json
from typing import Any

from cortex.platform import metrics

RATE = "$__rate_interval"
WIDTH, HEIGHT = 8, 8

Query = tuple[str, str]
Panel = tuple[str, str, list[Query]]
"""A title, a unit, and expressions with their legends."""


def _rate(metric: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) (rate({metric}[{RATE}]))" if by else f"sum(rate({metric}[{RATE}]))"


def _fleet_rate(metric: str, labels: str, *by: str) -> str:
    """What agents count: once, however many routers say it."""
    return f"sum by ({', '.join(by)}) (max by ({labels}) (rate({metric}[{RATE}])))"


def _quantiles(metric: str, *by: str) -> list[Query]:
    named = ", ".join(("le", *by))
    legend = " ".join(f"{{{{{b}}}}}" for b in by)
    summed = f"sum by ({named}) (rate({metric}_bucket[{RATE}]))"
    return [(f"histogram_quantile({q}, {summed})", f"p{round(q * 100)} {legend}".strip()) for q in (0.5, 0.95)]


def _fleet_quantiles(metric: str, by: str) -> list[Query]:
    """Quantiles of what agents count: once, however many routers say it."""
    summed = f"sum by (le, {by}) (max by (le, node, model, {by}) (rate({metric}_bucket[{RATE}])))"
    return [(f"histogram_quantile({q}, {summed})", f"p{round(q * 100)} {{{{{by}}}}}") for q in (0.5, 0.95)]


ROWS: dict[str, list[Panel]] = {
    "Now": [
        ("Hosts", "short", [("max by (state) (cortex_hosts)", "{{state}}")]),
        ("Instances", "short", [("sum by (state) (max by (node, model, state) (cortex_instances))", "{{state}}")]),
        (
            "In flight and waiting",
            "short",
            [
                ("sum by (model) (max by (node, model) (cortex_model_in_flight))", "{{model}}"),
                ("sum(max by (model) (cortex_model_queue_depth)) or vector(0)", "waiting"),
            ],
        ),
    ],
    "Requests": [
        ("Requests", "reqps", [(_rate("cortex_requests_total", "model"), "{{model}}")]),
        (
            "Failed",
            "percentunit",
            [(f"{_rate('cortex_request_errors_total')} / {_rate('cortex_requests_total')}", "failed")],
        ),
        ("Answers", "reqps", [(_rate("cortex_responses_total", "dialect", "status"), "{{dialect}} {{status}}")]),
        ("Duration", "s", _quantiles("cortex_request_duration_seconds")),
        ("First token, starts included", "s", _quantiles("cortex_time_to_first_token_seconds", "model")),
        ("Held for an instance", "s", _quantiles("cortex_queue_wait_seconds", "model")),
        (
            "Turned away",
            "reqps",
            [
                (_rate("cortex_model_rejections_total", "reason"), "{{reason}}"),
                (_rate("cortex_requests_refused_total", "reason"), "before a function: {{reason}}"),
            ],
        ),
        (
            "Sent again, and left by their clients",
            "reqps",
            [
                (_rate("cortex_replays_total", "node"), "sent again: {{node}}"),
                (_rate("cortex_client_disconnects_total"), "left"),
            ],
        ),
        (
            "Instances that refused us",
            "short",
            [("sum by (model, node) (cortex_breaker_open) or vector(0)", "{{model}} {{node}}")],
        ),
    ],
    "Tokens": [
        (
            "Tokens",
            "short",
            [
                (_rate("cortex_prompt_tokens_total"), "in"),
                (_rate("cortex_cached_prompt_tokens_total"), "of these cached"),
                (_rate("cortex_completion_tokens_total"), "out"),
            ],
        ),
        ("Tokens per second of one stream", "short", _quantiles("cortex_tokens_per_second", "model")),
        ("Between two pieces of a stream", "s", _quantiles("cortex_inter_token_seconds", "model")),
    ],
    "Usage": [
        ("Cost an hour", "currencyUSD", [(f"3600 * {_rate('cortex_cost_usd_total', 'model')}", "{{model}}")]),
        ("GPUs in use", "short", [(_rate("cortex_gpu_seconds_total", "model"), "{{model}}")]),
        ("Power by function", "watt", [(_rate("cortex_energy_joules_total", "model"), "{{model}}")]),
        (
            "Energy of a token",
            "joule",
            [(f"{_rate('cortex_energy_joules_total')} / {_rate('cortex_completion_tokens_total')}", "out")],
        ),
        (
            "Audio and images",
            "short",
            [
                (_rate("cortex_audio_seconds_total"), "seconds transcribed"),
                (_rate("cortex_speech_characters_total"), "characters spoken"),
                (_rate("cortex_images_total"), "images"),
            ],
        ),
        ("Budgets of keys", "short", [("max by (state) (cortex_budgets)", "{{state}}")]),
    ],
    "Batches": [
        ("Open batches", "short", [("sum by (instance, state) (cortex_batches)", "{{instance}} {{state}}")]),
        ("Their lines", "short", [("sum by (instance, state) (cortex_batch_lines)", "{{instance}} {{state}}")]),
        (
            "Lines that wait",
            "reqps",
            [(_rate("cortex_batch_waits_total", "model"), "{{model}}")],
        ),
    ],
    "Starts": [
        ("Starts by path", "short", [(_fleet_rate("cortex_starts_total", "node, model, path", "path"), "{{path}}")]),
        (
            "Phases of a start, mean",
            "s",
            [
                (
                    f"{_fleet_rate('cortex_start_phase_seconds_sum', 'node, model, phase', 'phase')} / "
                    f"{_fleet_rate('cortex_start_phase_seconds_count', 'node, model, phase', 'phase')}",
                    "{{phase}}",
                )
            ],
        ),
        (
            "Failures",
            "short",
            [
                (
                    _fleet_rate("cortex_start_failures_total", "node, model, reason", "model", "reason"),
                    "{{model}} {{reason}}",
                )
            ],
        ),
        (
            "Evictions",
            "short",
            [
                (_fleet_rate("cortex_evictions_total", "node, model", "model"), "{{model}}"),
                (_fleet_rate("cortex_evictions_regretted_total", "node, model", "model"), "regretted: {{model}}"),
            ],
        ),
        ("Duration of a start", "s", _fleet_quantiles("cortex_start_seconds", "mode")),
        ("Parking", "s", _fleet_quantiles("cortex_park_seconds", "tier")),
        ("Return of a parked instance", "s", _fleet_quantiles("cortex_return_seconds", "tier")),
        (
            "Launches by server",
            "short",
            [(_fleet_rate("cortex_launches_total", "node, server, how", "server", "how"), "{{server}} {{how}}")],
        ),
        (
            "Functions that hosts do not start again yet",
            "short",
            [("sum by (model) (max by (node, model) (cortex_start_backoff))", "{{model}}")],
        ),
        ("Decisions", "short", [(_fleet_rate("cortex_decisions_total", "node, what", "what"), "{{what}}")]),
        ("Drains", "short", [(_fleet_rate("cortex_drains_total", "node, model, why", "why"), "{{why}}")]),
        ("No room", "short", [(_fleet_rate("cortex_placement_refusals_total", "node, model", "model"), "{{model}}")]),
    ],
    "Hosts": [
        (
            "Memory given to instances",
            "percentunit",
            [
                (
                    'max by (node, device) (cortex_device_memory_mb{kind="admitted"}) / '
                    'max by (node, device) (cortex_device_memory_mb{kind="budget"})',
                    "{{node}} {{device}}",
                )
            ],
        ),
        (
            "Memory of devices",
            "decmbytes",
            [("sum by (kind) (max by (node, device, kind) (cortex_device_memory_mb))", "{{kind}}")],
        ),
        (
            "Foreign memory",
            "decmbytes",
            [('max by (node, device) (cortex_device_memory_mb{kind="foreign"})', "{{node}} {{device}}")],
        ),
        ("GPU use", "percent", [("max by (node, device) (cortex_device_utilization_pct)", "{{node}} {{device}}")]),
        ("GPU temperature", "celsius", [("max by (node, device) (cortex_device_temp_c)", "{{node}} {{device}}")]),
        (
            "GPU power",
            "watt",
            [
                (
                    _fleet_rate("cortex_device_energy_joules_total", "node, device", "node", "device"),
                    "{{node}} {{device}}",
                )
            ],
        ),
        ("RAM of parked instances", "decmbytes", [("max by (node, kind) (cortex_park_ram_mb)", "{{node}} {{kind}}")]),
        ("Last heard of", "s", [("max by (node) (cortex_host_silent_seconds)", "{{node}}")]),
    ],
    "Routers and the record": [
        ("What the router takes of a request", "s", _quantiles("cortex_overhead_seconds", "stage")),
        (
            "CPU time per request",
            "s",
            [(f"{_rate('cortex_router_cpu_seconds_total')} / {_rate('cortex_requests_total')}", "routers")],
        ),
        (
            "Worker processes",
            "short",
            [
                ("sum(cortex_router_processes)", "processes"),
                ("max(cortex_routers)", "that report"),
                ("sum(cortex_record_away)", "that cannot read the record"),
            ],
        ),
        (
            "Faults that were survived",
            "short",
            [
                (_rate("cortex_router_faults_total", "work"), "router: {{work}}"),
                (_fleet_rate("cortex_agent_faults_total", "node, work", "node", "work"), "{{node}}: {{work}}"),
                (_rate("cortex_series_dropped_total"), "counts dropped"),
            ],
        ),
        ("Redis answers in", "s", [("max by (instance) (cortex_record_ping_seconds)", "{{instance}}")]),
        ("Redis can be reached", "short", [("min by (instance) (cortex_record_up)", "{{instance}}")]),
        ("Jobs", "short", [("sum by (state) (max by (queue, state) (cortex_jobs))", "{{state}}")]),
    ],
}

NEEDS_A_GPU = ("GPU use", "GPU temperature", "GPU power", "Power by function", "Energy of a token")
NEEDS_MORE = (
    "Audio and images",
    "Budgets of keys",
    "Faults that were survived",
    "Functions that hosts do not start again yet",
    "Lines that wait",
    "Parking",
    "RAM of parked instances",
    "Return of a parked instance",
)
"""Panels of what the small fleet of the monitoring test does not have: functions, tiers, keys, batches, faults."""
NO_PANEL = {
    metrics.COLD_STARTS: "the sum of cortex_starts_total, under its earlier name",
    metrics.VRAM_USED: "cortex_device_memory_mb has it, and this is its earlier name",
    metrics.VRAM_FREE: "cortex_device_memory_mb has it, and this is its earlier name",
    metrics.IN_FLIGHT: "cortex_model_in_flight has the sum over routers",
    metrics.WAITING: "cortex_model_queue_depth has the sum over routers",
}


def dashboard() -> str:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, contents in ROWS.items():
        panels.append({"id": len(panels) + 1, "type": "row", "title": row, "collapsed": False, "panels": [],
                       "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}})  # fmt: skip
        y += 1
        for at, (title, unit, queries) in enumerate(contents):
            place = {"h": HEIGHT, "w": WIDTH, "x": at % 3 * WIDTH, "y": y + at // 3 * HEIGHT}
            panels.append(_panel(len(panels) + 1, title, unit, queries, place))
        y += -(-len(contents) // 3) * HEIGHT
    dashboard = {
        "uid": "cortex",
        "title": "cortex",
        "tags": ["cortex"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [{"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "panels": panels,
    }
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


def _panel(id: int, title: str, unit: str, queries: list[Query], place: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "id": id,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {
            "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(65 + n), "datasource": source, "expr": expression, "legendFormat": legend}
            for n, (expression, legend) in enumerate(queries)
        ],
    }
