"""Gathers what a memory estimate needs, file sizes and the model's configuration, from this host or else from the hub.
It downloads only the head of one file.
"""

import json
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cortex.functions.estimate import MIB, Estimate, Shape, estimate, shape_of_config, shape_of_gguf
from cortex.functions.selection import NoSuchWeights, select
from cortex.functions.sources import BadSource, Repo, source_of
from cortex.functions.spec import Function
from cortex.platform.scheduling.saved_state import LocalWeights
from cortex.platform.settings import Settings
from cortex.platform.weights import gguf_head, hub
from cortex.platform.weights import store as weights
from cortex.platform.weights.hub import Hub, WeightsUnavailable

HEAD_BYTES = 1 * MIB
"""A GGUF's shape values precede its vocabulary."""


def estimate_memory(function: Function, settings: Settings) -> Estimate:
    """Estimate what an instance takes. Blocks. Raises WeightsUnavailable."""
    cache = Path(settings.agent.cache_dir)
    local = inspect(function, cache)
    if local is not None:
        return estimate(function, local.size_mb, local.shape, here=True)
    try:
        source = source_of(function)
    except BadSource as error:
        raise WeightsUnavailable(str(error)) from None
    if not isinstance(source, Repo):
        return estimate(function, 0, None)
    client = Hub(weights.hub_cache(cache), endpoint=settings.hub.endpoint, token=hub.token(settings.hub.token_file))
    listing = client.listing(source.repo, source.revision)
    try:
        selection = select(source, listing.files)
    except NoSuchWeights as error:
        raise WeightsUnavailable(str(error)) from None
    entry = selection.entry or next((f.path for f in selection.files if f.path == "config.json"), "")
    head = client.head(source.repo, listing.commit, entry, HEAD_BYTES) if entry else b""
    return estimate(function, -(-selection.size // MIB), _shape(entry, head))


def inspect(function: Function, cache: Path) -> LocalWeights | None:
    """Return the weights as `store.find()` does, plus shape and layer count. Blocks. Raises WeightsUnavailable."""
    local = weights.find(function, cache)
    if local is None or not local.path:
        return local
    path = Path(local.path)
    file = path / "config.json" if path.is_dir() else path
    try:
        with file.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError:
        return local
    return replace(local, shape=_shape(file.name, head), layers=_layers(file.name, head))


def _layers(name: str, head: bytes) -> int:
    """Return a GGUF's layer count; 0 when its head lacks it or the file is not GGUF."""
    head_values = gguf_head.read_prefix(head) if name.endswith(".gguf") else {}
    layers = head_values.get(f"{head_values.get('general.architecture')}.block_count")
    return layers if isinstance(layers, int) else 0


def _shape(name: str, head: bytes) -> Shape | None:
    if name.endswith(".gguf"):
        return shape_of_gguf(gguf_head.read_prefix(head))
    try:
        config: Any = json.loads(head)
    except ValueError:
        return None
    return shape_of_config(config) if isinstance(config, dict) else None
