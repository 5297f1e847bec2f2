"""Opens the status page in a browser, logged in.

The key must not be in an argument, which every user of the machine can see, nor in a URL that is sent. A private file
redirects the browser to the login page, with the key after the `#`, which stays in the browser.
"""

import os
import webbrowser
from html import escape
from urllib.parse import urlencode

from cortex.cli.local import state_dir


def open_page(url: str, key: str) -> bool:
    """Open the page. False if no browser could be started."""
    return webbrowser.open(_redirect_file(f"{url}/status/login#{urlencode({'key': key})}") if key else f"{url}/status")


def _redirect_file(url: str) -> str:
    """Write a private file that redirects to a URL; return its URI."""
    folder = state_dir()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "open.html"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        target = escape(url, quote=True)
        file.write(f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={target}">\n')
    return path.as_uri()
