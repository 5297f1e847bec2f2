"""A real nginx in front of a router, below a path."""

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import eventually, free_port

CONFIG = """daemon off; master_process off; error_log stderr error; pid {folder}/nginx.pid;
events {{ }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location {path}/ {{
      proxy_pass {upstream}; proxy_http_version 1.1; proxy_set_header Host $http_host; proxy_buffering off;
    }}
  }}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path, router: str, path: str, *, removes_path: bool) -> Iterator[str]:
    """Run nginx; yield the URL below which it serves a router. Skips the test where nginx is not installed."""
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("nginx is not installed")
    port = free_port()
    config = folder / "nginx.conf"
    upstream = f"{router}/" if removes_path else router
    config.write_text(CONFIG.format(folder=folder, port=port, path=path, upstream=upstream))
    with (folder / "nginx.log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(config), "-p", str(folder)], stdout=log, stderr=log)
    try:
        eventually(lambda: _listens(port), what="nginx")
        yield f"http://127.0.0.1:{port}{path}"
    finally:
        process.terminate()
        process.wait(10)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
