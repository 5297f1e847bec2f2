"""A function as its operator declares it: one `[[models]]` entry, checked and with its defaults.

Specs with the same `revision` have the same worker command, so an instance of one may serve the other. All other
fields, such as the idle time or the queue length, can change while an instance runs.
"""

import enum
import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from cortex.functions.capabilities import Cost, Level, Sampling, Template

# Bounded above, because a spec is sent as JSON, which has no infinity and no more than 64 bits.
Whole = Annotated[int, Meta(ge=-(2**53), le=2**53)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Positive = Annotated[int, Meta(ge=1, le=2**53)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Tokens = Annotated[int, Meta(ge=0, le=2**31 - 1)]
# Arguments and environment variables cannot contain NUL.
Word = Annotated[str, Meta(pattern=r"^[^\x00]*$")]
Variable = Annotated[str, Meta(pattern=r"^[^=\x00]+$")]
Field = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?\Z", max_length=100)]
"""A field of a request's body, or a name inside one."""
Path = Annotated[str, Meta(pattern=r"^/[!-~]*$")]


class Engine(enum.StrEnum):
    """The program that runs the weights."""

    VLLM = "vllm"
    LLAMACPP = "llamacpp"
    COMMAND = "command"
    FAKE = "fake"


SLEEPERS = frozenset({Engine.VLLM, Engine.FAKE})
"""Engines with a sleep mode: they can move their weights to RAM."""


class Park(enum.StrEnum):
    """What an instance keeps when it leaves its devices: see `Tier` in the record."""

    AUTO = "auto"
    """The fastest tier that makes enough room, of those that the engine and the host have."""
    SLEEP = "sleep"
    FREEZE = "freeze"
    STOP = "stop"


class Start(enum.StrEnum):
    """The settings with which an engine starts, where it has two sets of them: see `launch/modes.py`."""

    AUTO = "auto"
    """The fast ones while a request waits, and the full ones in a quiet moment after that."""
    FAST = "fast"
    FULL = "full"


Task = Literal["auto", "generate", "embed", "rerank", "transcribe", "speech", "image"]
"""What a function's model is for."""
Endpoint = Literal[
    "chat", "completions", "embeddings", "rerank", "transcriptions", "translations", "speech", "images", "image_edits"
]
"""An endpoint of a worker: one of OpenAI's paths."""


class Adapter(Struct, frozen=True, forbid_unknown_fields=True):
    """LoRA weights that the instances of a function have beside their own, for one of its variants."""

    id: str
    """The variant's id."""
    source: Word


class Function(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A declared model that scales from zero. `models.toml` at the root documents every field.

    No garbage collection searches it: it cannot be part of a cycle, and a catalogue may have ten thousand.
    """

    id: str
    engine: Engine
    variant_of: str = ""
    """Its base: the function whose instances serve this one. Empty: it has instances of its own."""
    adapter: Word = ""
    """A variant's own LoRA weights, a source as `source` is."""
    adapters: tuple[Adapter, ...] = ()
    """Those of its variants. Not in `models.toml`: the router sets it from these (`variants.fold`)."""
    source: Word = ""
    revision: Word = ""
    quant: Word = ""
    vram_mb: Count = 0
    min_devices: Positive = 1
    min_device_vram_mb: Count = 0
    pinned_on: tuple[str, ...] = ()
    pinned: bool = False
    labels: tuple[str, ...] = ()
    context: Count = 0
    args: tuple[Word, ...] = ()
    env: dict[Variable, Word] = {}
    min: Count = 0
    max: Positive = 1
    warm: str | tuple[str, ...] = ""
    """Windows (`hours.py`) in which alone `min`, at least 1, counts."""
    baseline: bool = False
    """Keep one instance in room that nothing else wants."""
    target_concurrency: Positive = 8
    idle_after_s: Seconds = 300.0
    keep_alive_max_s: Seconds = 0.0
    """How long a request may let its instance stay idle; 0: `idle_after_s`."""
    queue: Count = 256
    priority: Whole = 0
    turn_min_s: Seconds = 15.0
    turn_wait_s: Seconds = 60.0
    turn_grace_s: Seconds = 60.0
    start_timeout_s: Seconds = 600.0
    request_timeout_s: Seconds = 3600.0
    vision: bool | Literal["auto"] = "auto"
    template: Template = Template()
    effort: dict[Level, str] = {}
    sampling: Sampling = Sampling()
    chat_template_kwargs: dict[str, str | bool | int] = {}
    """Variables of the chat template where a client sets none."""
    default_output_tokens: Tokens = 0
    max_output_tokens: Tokens = 0
    on_long_prompt: Literal["auto", "error", "clamp"] = "auto"
    remote_images: bool = False
    allow: Annotated[tuple[Field, ...], Meta(max_length=100)] = ()
    """Fields that clients may send in addition to those of `passing.py`: `grammar`, `chat_template_kwargs.style`."""
    cache: Literal["key", "shared"] = "key"
    """Which cached prompts a request may use: those of its own key and of keys in its group, or all."""
    keep_context: bool = False
    """Save long conversations to the host's disk before a worker leaves, and restore them when they come back."""
    native: tuple[Literal["messages", "responses"], ...] = ()
    cost: Cost = Cost()
    server: Literal["", "llama-server", "xllamacpp", "llama_cpp.server"] = ""
    task: Task = "auto"
    dtype: Word = ""
    tool_parser: Word = "auto"
    reasoning_parser: Word = "auto"
    chat_template: Word = ""
    mmproj: Word = ""
    allow_pickle: bool = False
    """Load weights that are pickles, which runs any code in them."""
    park: Park = Park.AUTO
    """What an idle or evicted instance may keep."""
    start: Start = Start.AUTO
    """With which of its engine's settings an instance starts. A change replaces no instance."""
    command: tuple[Word, ...] = ()
    health_path: Path = "/health"
    served_name: Word = ""
    """A command: the name of the model at its program; empty: the function's id."""
    dialects: tuple[Endpoint, ...] = ()

    @property
    def base_id(self) -> str:
        """The id of the function whose instances serve it: its own, or that of its base."""
        return self.variant_of or self.id

    @property
    def name_at_worker(self) -> str:
        """The name of the model at its worker."""
        return self.served_name or self.base_id

    @property
    def has_weights(self) -> bool:
        """Whether its engine needs weights on the host: a command only if it has the placeholder `{source}`."""
        if self.engine is Engine.COMMAND:
            return any("{source}" in word for word in self.command)
        return self.engine is not Engine.FAKE

    @property
    def resident(self) -> int:
        """The number of instances that idling does not end."""
        return max(self.min, int(self.baseline))

    @property
    def longest_idle_s(self) -> float:
        """The longest time that a request's `keep_alive` keeps an idle instance."""
        return max(self.idle_after_s, self.keep_alive_max_s)

    @property
    def weights(self) -> str:
        """The source of the weights: `source`, or the id by default, of a variant that of its base."""
        return self.source or self.base_id


LAUNCH_FIELDS = (
    "id", "engine", "source", "revision", "quant", "min_devices", "context", "args", "env", "target_concurrency",
    "server", "task", "dtype", "tool_parser", "reasoning_parser", "chat_template", "mmproj", "park", "command",
    "health_path", "served_name", "cache", "adapters",
    "keep_context",
)  # fmt: skip
"""Fields that change the worker's command. A change of any of them makes a new revision."""


_ALWAYS_HASHED = frozenset(
    ("id", "engine", "source", "quant", "min_devices", "context", "args", "env", "target_concurrency")
)
"""Launch fields that are hashed even at their default. Newer ones are hashed only when they are set, so that an upgrade
of cortex replaces no running instance."""
_DEFAULTS = Function(id="", engine=Engine.FAKE)


def revision(function: Function) -> str:
    """Return 12 hex digits that identify the spec's worker command."""
    values = {f: getattr(function, f) for f in LAUNCH_FIELDS}
    if function.adapters and function.engine is Engine.VLLM:
        values["adapters"] = True  # it loads them while it runs
    hashed = {f: v for f, v in values.items() if f in _ALWAYS_HASHED or v != getattr(_DEFAULTS, f)}
    return hashlib.sha256(msgspec.json.encode(hashed, order="sorted")).hexdigest()[:12]
