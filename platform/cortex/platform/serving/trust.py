"""Certificate authorities for outgoing TLS connections."""

import ssl
from pathlib import Path

from cortex.platform.settings import SettingsError


def trust(ca_file: str) -> ssl.SSLContext:
    """Return a TLS context with the system's authorities and those of a file. Raises SettingsError."""
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(Path(ca_file).expanduser())
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"ca_file: {ca_file} cannot be used: {error}") from None
    return context
