"""Opening the status page in a browser, logged in.

The key must be in no argument (every user of a machine sees those) and in no URL that is sent: a private file leads
the browser to the login page, with the key behind the `#`, which stays in the browser.
"""

import os
import webbrowser
from html import escape
from urllib.parse import urlencode

from cortex.cli.local import state_dir


def open_page(url: str, key: str) -> bool:
    """Open the page. False when no browser could be started."""
    return webbrowser.open(_way_in(f"{url}/status/login#{urlencode({'key': key})}") if key else f"{url}/status")


def _way_in(url: str) -> str:
    """Return a file, for this user only, that leads on to a URL."""
    folder = state_dir()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "open.html"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        to = escape(url, quote=True)
        file.write(f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={to}">\n')
    return path.as_uri()
