"""Whom we believe when the other side shows a certificate."""

import ssl
from pathlib import Path

from cortex.platform.settings import SettingsError


def trust(ca_file: str) -> ssl.SSLContext:
    """Return what to believe of the other side's certificate: the system's authorities, and those of a file."""
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(Path(ca_file).expanduser())
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"ca_file: {ca_file} cannot be used: {error}") from None
    return context
