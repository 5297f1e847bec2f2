"""Audio and images in OpenAI's dialect. Requests are checked and filtered; answers pass through unchanged."""

from cortex.router.dialects.core.errors import Dialect

PATHS: dict[Dialect, str] = {
    "transcriptions": "/v1/audio/transcriptions",
    "translations": "/v1/audio/translations",
    "speech": "/v1/audio/speech",
    "images": "/v1/images/generations",
    "image_edits": "/v1/images/edits",
}
"""The path of each dialect, at the router and at workers."""
