"""What the listeners of routers and agents have in common: limits, TLS, and whom they believe about clients.

A certificate that is renewed on disk is taken into the running listener: new connections get the new one, and those
that are open go on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn

from cortex.platform.serving.certificates import check, following
from cortex.platform.serving.http_limits import LimitedProtocol
from cortex.platform.settings import SettingsError


class TlsListener(uvicorn.Config):
    """A configuration whose certificate follows its files."""

    def load(self) -> None:
        """Load it, in the process that serves."""
        super().load()
        if self.is_ssl and self.ssl is not None:
            self.loaded_app = following(self.loaded_app, self.ssl, str(self.ssl_certfile), str(self.ssl_keyfile))


def config(
    app: Any, listen: str, *, cert: str = "", key: str = "", proxies: Sequence[str] = (), **rest: Any
) -> uvicorn.Config:
    """Return how to serve an application. Raises SettingsError for a certificate that cannot be used."""
    host, _, port = listen.rpartition(":")
    if bool(cert) != bool(key):
        raise SettingsError("a certificate needs its key, and a key its certificate: give tls_cert and tls_key")
    if cert:
        check(cert, key)
        rest |= {"ssl_certfile": str(Path(cert).expanduser()), "ssl_keyfile": str(Path(key).expanduser())}
    return TlsListener(
        app,
        host=host.strip("[]"),
        port=int(port),
        http=LimitedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        **rest,
    )
