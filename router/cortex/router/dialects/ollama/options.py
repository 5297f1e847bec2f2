"""Read Ollama's `options` into the settings of a worker's request.

Options for loading a model (`num_ctx`, `num_gpu`, ...) are set in the catalogue, by an operator. They are reported as
dropped, like those that the worker does not know.
"""

from typing import Annotated, Any

import msgspec

from cortex.router.dialects import gate
from cortex.router.dialects.core import wire
from cortex.router.dialects.core.conversation import Request
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.dialects.core.traits import Traits

AT, LIMIT = "options", "options.num_predict"
_Whole = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
_Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""Ollama's and vLLM's seeds have 64 bits; llama.cpp uses the lower 32."""


class _Options(msgspec.Struct):
    """The options that pass, if the worker's server knows them."""

    num_predict: _Whole | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_k: _Whole | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    seed: _Seed | None = None
    repeat_last_n: _Whole | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


SAMPLING = tuple(name for name in _Options.__struct_fields__ if name not in ("num_predict", "stop"))
"""Options that are fields of a worker's request, with the same name."""


class Read(msgspec.Struct, frozen=True):
    """The client's output limit, and the names of the options that are not forwarded."""

    num_predict: int | None
    dropped: tuple[str, ...]


def read(options: dict[str, Any] | None, request: Request, traits: Traits) -> Read:
    """Set the options of a request. A `num_predict` below 1 is no limit. Raises BadRequest."""
    values = wire.convert(options or {}, _Options, AT)
    dropped = [f"{AT}.{name}" for name in sorted((options or {}).keys() - set(_Options.__struct_fields__))]
    stops = [values.stop] if isinstance(values.stop, str) else values.stop or []
    gate.check_length("stop", len(stops))
    request.stop = [stop for stop in stops if stop] or None
    for name in SAMPLING:
        value = getattr(values, name)
        field = _field(name, traits)
        if value is not None and field in traits.passing.fields:
            _check(name, value)
            setattr(request, field, value)
        elif value is not None:
            dropped.append(f"{AT}.{name}")
    limit = values.num_predict
    return Read(limit if limit is not None and limit > 0 else None, tuple(dropped))


def _field(name: str, traits: Traits) -> str:
    """Return the worker's name of an option: vLLM calls the penalty of repetition otherwise."""
    other = "repetition_penalty"
    return other if name == "repeat_penalty" and name not in traits.passing.fields else name


def _check(name: str, value: float) -> None:
    minimum, maximum = gate.NUMBERS.get(name, (None, None))
    if minimum is not None and maximum is not None and not minimum <= value <= maximum:
        raise BadRequest(f"expected a number from {minimum} to {maximum}", f"{AT}.{name}")
