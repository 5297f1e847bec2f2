"""Images on their way to a worker: always as data, never as an address for someone else to fetch.

A worker that is handed an address fetches it from inside the network, so addresses pass only where the function
says so. What cannot be an image is refused here, with the field's name, rather than in the worker's words.
"""

import base64
import binascii

from cortex.router.dialects.conversation import ImagePart, ImageUrl
from cortex.router.dialects.errors import BadRequest
from cortex.router.dialects.traits import Traits


def from_base64(media_type: object, data: object, at: str) -> ImagePart:
    """An image given as its type and its bytes in base64."""
    if not isinstance(media_type, str) or not media_type.lower().startswith("image/"):
        raise BadRequest("expected the type of an image, such as image/png", f"{at}.media_type")
    return ImagePart(ImageUrl(f"data:{media_type};base64,{checked(data, f'{at}.data')}"))


def from_url(url: object, traits: Traits, at: str, detail: object = None) -> ImagePart:
    """An image given as a data URL or, where the function allows it, as an address."""
    if not isinstance(url, str):
        raise BadRequest("expected a string", at)
    if url[:5].lower() == "data:":
        header, comma, data = url[5:].partition(",")
        media_type, *options = header.split(";")
        if not comma or "base64" not in options:
            raise BadRequest("expected data:image/...;base64,...", at)
        if not media_type.lower().startswith("image/"):
            raise BadRequest(f"{media_type!r} is not the type of an image", at)
        url = f"data:{header},{checked(data, at)}"
    elif not traits.remote_images:
        raise BadRequest("images are not fetched from addresses here; send the image as base64 data", at)
    elif not url.lower().startswith(("http://", "https://")):
        raise BadRequest("expected a data:, http: or https: URL", at)
    return ImagePart(ImageUrl(url, detail if isinstance(detail, str) else None))


def checked(data: object, at: str) -> str:
    """Base64 that a worker will be able to decode; line breaks are forgiven."""
    if not isinstance(data, str):
        raise BadRequest("expected a string", at)
    for text in (data, "".join(data.split())):
        try:
            if base64.b64decode(text, validate=True):
                return text
        except (binascii.Error, ValueError):
            continue
    raise BadRequest("not valid base64", at)


def as_text(data: object, at: str) -> str:
    """The text of a base64 document whose type says that it is text."""
    return base64.b64decode(checked(data, at)).decode("utf-8", "replace")
