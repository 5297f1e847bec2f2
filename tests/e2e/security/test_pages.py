"""Content security of everything that the router serves to browsers, and names in its metrics."""

import json
import re
from urllib.parse import urljoin

import httpx
import pytest

from tests.e2e.security.keyed import Keyed
from tests.e2e.security.raw import say
from tests.support.stack import eventually

pytestmark = pytest.mark.xdist_group("security")


def test_every_page_and_asset_has_a_policy_without_inline_scripts(keyed: Keyed) -> None:
    with keyed.client("status") as http:
        pages = {path: http.get(path) for path in ("/status", "/status/login", "/status/function/one%2Fopen")}
        matches = {
            urljoin(path, link)
            for path, page in pages.items()
            for link in re.findall(r'(?:src|href)="([./]*status/assets/[^"#]+)', page.text)
        }
        assets = {path: http.get(path) for path in sorted(matches)}

    assert {path.rpartition(".")[2] for path in assets} >= {"css", "js"}
    for path, answer in (pages | assets).items():
        assert answer.status_code == 200, path
        policy = dict(part.split(maxsplit=1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'", path
        assert policy["script-src"] == policy["style-src"] == "'self'", path
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'", path
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert not [name for name in answer.headers if name.startswith("access-control-")], path
    for path, page in pages.items():
        assert re.findall(r"<script(?![^>]*\ssrc=)", page.text) == [], path
        assert re.findall(r"<[^>]+\s(?:on\w+|style)=", page.text) == [], path
        assert "javascript:" not in page.text, path


def test_unknown_names_create_no_metric_series(keyed: Keyed) -> None:
    metrics = f"http://{keyed.stack.env['CORTEX_GATEWAY__METRICS_LISTEN']}/metrics"

    def series() -> set[str]:
        """Return what is not about a function of the catalogue, once the record is there, too."""
        text = eventually(lambda: t if "cortex_record_up 1" in (t := page()) else "", what="the record")
        lines = [line.rpartition(" ")[0] for line in text.splitlines() if line and not line.startswith("#")]
        return {line for line in lines if not re.search(r'model="(one|two)/', line)}

    def page() -> str:
        return httpx.get(metrics, trust_env=False).text

    def refused() -> float:
        lines = page().splitlines()
        return sum(
            float(x.rpartition(" ")[2]) for x in lines if re.match(r"cortex_requests_refused_total.*unknown_model", x)
        )

    def strangers(names: list[str]) -> bytes:
        """Return requests in a row, one for every name."""
        key, each = keyed.keys["admin"], []
        for name in names:
            body = json.dumps({"model": name}).encode()
            head = f"Host: x\r\nx-api-key: {key}\r\nx-request-id: {name}\r\nuser-agent: {name}\r\n"
            each.append(
                f"POST /v1/chat/completions HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
            )
            each.append(f"GET /{name} HTTP/1.1\r\n{head}\r\n".encode())
        return b"".join(each) + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    say(keyed.stack.port, strangers(["a-first-one"]))
    eventually(refused, what="the first to be counted")
    before, counted = series(), refused()
    names = [f"strange-{number}" for number in range(1000)]
    answers = [say(keyed.stack.port, strangers(names[at : at + 8]), silence_s=10) for at in range(0, 1000, 8)]
    eventually(lambda: refused() >= counted + 1000, what="all of them to be counted")
    after = series()

    assert sum(one.statuses.count(404) for one in answers) == 2000
    assert not [line for line in after if "strange-" in line]
    assert len(after - before) <= 5  # what had not happened yet at all, such as another kind of refusal
