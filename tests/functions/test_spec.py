"""The spec of a function: its revision, and invalid values."""

from typing import Any

import msgspec
import pytest

from cortex.functions.capabilities import Cost, Sampling, Template
from cortex.functions.spec import LAUNCH_FIELDS, Adapter, Engine, Function, Park, Start, revision

PLAIN = Function(id="org/model", engine=Engine.LLAMACPP)

CHANGES: dict[str, Any] = {
    "id": "org/other",
    "engine": Engine.VLLM,
    "variant_of": "org/base",
    "adapter": "org/adapter",
    "adapters": (Adapter("org/v", "org/adapter"),),
    "source": "org/repo:file.gguf",
    "revision": "v1.0",
    "quant": "Q4_K_M",
    "vram_mb": 1,
    "min_devices": 2,
    "min_device_vram_mb": 1,
    "pinned_on": ("host-a",),
    "pinned": True,
    "labels": ("fast",),
    "context": 4096,
    "args": ("--flash-attn",),
    "env": {"A": "b"},
    "min": 1,
    "max": 2,
    "warm": "08:00-18:00 UTC",
    "baseline": True,
    "target_concurrency": 1,
    "idle_after_s": 1.0,
    "keep_alive_max_s": 1.0,
    "queue": 1,
    "priority": 1,
    "turn_min_s": 1.0,
    "turn_wait_s": 1.0,
    "turn_grace_s": 1.0,
    "start_timeout_s": 1.0,
    "request_timeout_s": 1.0,
    "vision": True,
    "template": Template(inline_system=True),
    "effort": {"xhigh": "high"},
    "sampling": Sampling(temperature=0.5),
    "chat_template_kwargs": {"enable_thinking": False},
    "default_output_tokens": 1,
    "max_output_tokens": 1,
    "on_long_prompt": "clamp",
    "remote_images": True,
    "allow": ("grammar",),
    "cache": "shared",
    "keep_context": True,
    "native": ("messages",),
    "cost": Cost(input=1.0),
    "server": "llama-server",
    "task": "embed",
    "dtype": "bfloat16",
    "tool_parser": "hermes",
    "reasoning_parser": "none",
    "chat_template": "/srv/chat.jinja",
    "mmproj": "/srv/mmproj.gguf",
    "allow_pickle": True,
    "park": Park.STOP,
    "start": Start.FULL,
    "command": ("serve", "{port}"),
    "health_path": "/ready",
    "served_name": "tts-1",
    "dialects": ("chat",),
}


def test_every_field_has_a_changed_value_here() -> None:
    assert tuple(CHANGES) == Function.__struct_fields__


def test_only_the_first_adapter_makes_a_new_revision_where_the_engine_loads_others_while_it_runs() -> None:
    none, one, two = (
        msgspec.structs.replace(PLAIN, engine=Engine.VLLM, adapters=tuple(Adapter(n, f"org/{n}") for n in names))
        for names in ("", "a", "ab")
    )

    assert revision(none) != revision(one) == revision(two)


@pytest.mark.parametrize("field", LAUNCH_FIELDS)
def test_a_field_of_the_worker_command_makes_a_new_revision(field: str) -> None:
    changed = msgspec.structs.replace(PLAIN, **{field: CHANGES[field]})

    assert revision(changed) != revision(PLAIN)


@pytest.mark.parametrize("field", [f for f in CHANGES if f not in LAUNCH_FIELDS])
def test_any_other_field_leaves_the_revision_unchanged(field: str) -> None:
    changed = msgspec.structs.replace(PLAIN, **{field: CHANGES[field]})

    assert revision(changed) == revision(PLAIN)


def test_a_revision_is_stable_across_releases() -> None:
    # A change would make an upgrade of cortex replace every running instance.
    assert revision(PLAIN) == "2281bd855974"


def test_the_order_of_variables_does_not_change_the_revision() -> None:
    first = msgspec.structs.replace(PLAIN, env={"A": "1", "B": "2"})
    second = msgspec.structs.replace(PLAIN, env={"B": "2", "A": "1"})

    assert revision(first) == revision(second)


def test_weights_come_from_the_source_or_else_the_id() -> None:
    assert PLAIN.weights == "org/model"
    assert msgspec.structs.replace(PLAIN, source="org/repo:a.gguf").weights == "org/repo:a.gguf"


def test_a_spec_is_equal_after_encoding_and_decoding() -> None:
    spec = Function(**CHANGES)

    assert msgspec.json.decode(msgspec.json.encode(spec), type=Function) == spec


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vram_mb", -1),
        ("vram_mb", 2**70),
        ("context", 2**63),
        ("min_devices", 0),
        ("max", 0),
        ("target_concurrency", 0),
        ("idle_after_s", -0.1),
        ("idle_after_s", float("inf")),
        ("idle_after_s", float("nan")),
        ("priority", -(2**70)),
        ("source", "a\0b"),
        ("args", ["--a", "b\0c"]),
        ("env", {"A": "b\0c"}),
        ("env", {"A=B": "c"}),
        ("env", {"": "c"}),
    ],
)
def test_a_value_that_json_or_an_argv_cannot_hold_is_rejected(field: str, value: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"id": "org/model", "engine": "fake", field: value}, Function)
