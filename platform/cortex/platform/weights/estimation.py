"""What is looked up to reckon a function's memory: the size of its files and its model's configuration, from this host
or, when they are not here, from the hub. Nothing is downloaded but the head of one file.
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
"""What a GGUF says of its shape stands before its vocabulary."""


def estimated(function: Function, settings: Settings) -> Estimate:
    """Estimate what an instance takes. Blocks. Raises WeightsUnavailable."""
    cache = Path(settings.agent.cache_dir)
    found = weighed(function, cache)
    if found is not None:
        return estimate(function, found.size_mb, found.shape, here=True)
    try:
        source = source_of(function)
    except BadSource as error:
        raise WeightsUnavailable(str(error)) from None
    if not isinstance(source, Repo):
        return estimate(function, 0, None)
    way = Hub(weights.hub_cache(cache), endpoint=settings.hub.endpoint, token=hub.token(settings.hub.token_file))
    listing = way.listing(source.repo, source.revision)
    try:
        chosen = select(source, listing.files)
    except NoSuchWeights as error:
        raise WeightsUnavailable(str(error)) from None
    entry = chosen.entry or next((f.path for f in chosen.files if f.path == "config.json"), "")
    head = way.head(source.repo, listing.commit, entry, HEAD_BYTES) if entry else b""
    return estimate(function, -(-chosen.size // MIB), _shape(entry, head))


def weighed(function: Function, cache: Path) -> LocalWeights | None:
    """Return the weights as `store.find()` does, with what they say of the cache and of their layers. Blocks.

    Raises WeightsUnavailable.
    """
    found = weights.find(function, cache)
    if found is None or not found.path:
        return found
    path = Path(found.path)
    file = path / "config.json" if path.is_dir() else path
    try:
        with file.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
    except OSError:
        return found
    return replace(found, shape=_shape(file.name, head), layers=_layers(file.name, head))


def _layers(name: str, head: bytes) -> int:
    """Return how many layers a GGUF has; 0 when its head does not tell, or it is none."""
    head_values = gguf_head.begun(head) if name.endswith(".gguf") else {}
    layers = head_values.get(f"{head_values.get('general.architecture')}.block_count")
    return layers if isinstance(layers, int) else 0


def _shape(name: str, head: bytes) -> Shape | None:
    if name.endswith(".gguf"):
        return shape_of_gguf(gguf_head.begun(head))
    try:
        said: Any = json.loads(head)
    except ValueError:
        return None
    return shape_of_config(said) if isinstance(said, dict) else None
