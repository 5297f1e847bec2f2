"""Random but repeatable requests to every route of router and agent: no 5xx, no hang, no effect without a key.

`just test-security` sends many more, for minutes.
"""

import json
import re
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.e2e.security.keyed import Keyed
from tests.e2e.security.test_rights import AGENT, ROUTER, fleet_token
from tests.fuzz import ENDLESS, state

pytestmark = pytest.mark.xdist_group("security")

LIMIT_S = 10.0
ACTS = ("/drain", "/hosts/{host}", "/revoke", "/rotate")
"""Parts of routes whose effects would break the fleet for the other tests."""

words = st.one_of(
    st.sampled_from(
        ["one/open", "mine", "nobody", "here", "..", "../../etc/passwd", "\0", "a\r\nb", "é" * 90, "-1", "1e99"]
    ),
    st.text(min_size=1, max_size=20),
)
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), words)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool", "x"])}, optional={"content": values}
    ),
    max_size=3,
)
NAMED = {
    "model": st.sampled_from(["one/open", "mine", "two/other", "nobody", "one/dictation", "one/speaks", "one/draws"]),
    "voice": values,
    "n": leaves,
    "size": leaves,
    "response_format": values,
    "messages": messages,
    "name": words,
    "input": values,
    "prompt": values,
    "documents": values,
    "query": values,
    "function": values,
    "functions": values,
    "scope": values,
    "max_tokens": st.integers(-1, 9) | leaves,
    "stream": leaves,
    "stop": values,
    "tools": values,
    "tool_choice": values,
    "rpm": leaves,
    "options": values,
    "format": values,
    "think": values,
    "keep_alive": leaves,
    "images": values,
    "raw": leaves,
}
objects = st.dictionaries(st.sampled_from(sorted(NAMED)), values, max_size=4).flatmap(
    lambda fields: st.fixed_dictionaries({name: NAMED[name] | st.just(value) for name, value in fields.items()})
)
chats = st.fixed_dictionaries(
    {"model": NAMED["model"], "messages": messages},
    optional={n: NAMED[n] for n in ("max_tokens", "stream", "stop", "tools", "tool_choice", "response_format")},
)
parts = st.tuples(
    st.sampled_from(["file", "image", "mask", "model", "prompt", "stream", "n", "include[]", "x"]) | words,
    st.one_of(st.none(), words),
    st.sampled_from([b"one/dictation", b"one/draws", b"two/hears", b"true", b"1", b""]) | st.binary(max_size=40),
)


def form(parts: list[tuple[str, str | None, bytes]], end: bytes) -> bytes:
    """Return a form of these names, file names and values, as they are, with the end or without."""
    named = (
        b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
        % (name.encode(), b"" if file is None else b'; filename="%b"' % file.encode(), value)
        for name, file, value in parts
    )
    return b"".join(named) + end


forms = st.builds(form, st.lists(parts, min_size=1, max_size=4), st.sampled_from([b"--b--\r\n", b"", b"--b"]))
bodies = st.one_of(
    st.one_of(chats, objects, values).map(lambda v: json.dumps(v).encode()), st.binary(max_size=40), forms
)


def sent(http: httpx.Client, route: str, names: list[str], query: dict[str, Any], body: bytes) -> int:
    """Send one, and return its status."""
    method, path = route.split()
    filled = iter(names)
    path = re.sub(r"\{[^}]*\}", lambda _: quote(next(filled), safe=""), path)
    content = None if method == "GET" else body
    headers = {"content-type": "multipart/form-data; boundary=b"} if body.startswith(b"--b") else {}
    answer = http.request(method, path, params={k: str(v) for k, v in query.items()}, content=content, headers=headers)
    assert answer.status_code < 500 or answer.status_code == 503, f"{answer.status_code} {answer.text[:300]}"
    if path.startswith(("/v1/", "/api/")) and answer.status_code >= 400:
        assert answer.json()["error"]
    return answer.status_code


def fuzzed(http: httpx.Client, routes: list[str], examples: int) -> list[int]:
    """Send so many random requests to these routes; return their statuses."""
    statuses: list[int] = []

    @settings(
        derandomize=True,
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.sampled_from(routes), st.lists(words, min_size=2, max_size=2),
        st.dictionaries(st.sampled_from(["limit", "function", "plan", "lines", "run", "x"]), words, max_size=2), bodies,
    )  # fmt: skip
    def one(route: str, names: list[str], query: dict[str, Any], body: bytes) -> None:
        statuses.append(sent(http, route, names, query, body))

    one()
    return statuses


def open_to_all(table: dict[str, str]) -> list[str]:
    return [r for r in table if not r.endswith(ENDLESS) and not any(end in r for end in ACTS)]


def test_random_requests_without_a_key_change_nothing(keyed: Keyed) -> None:
    keyed.everywhere("", 401)
    before = state(keyed)
    agent = httpx.Client(base_url=f"http://{keyed.stack.env['CORTEX_AGENT__LISTEN']}", timeout=LIMIT_S, trust_env=False)
    with keyed.client() as http, agent:
        router_said = fuzzed(http, [r for r in ROUTER if not r.endswith(ENDLESS)], 50)
        agent_said = fuzzed(agent, [r for r in AGENT if not r.endswith(ENDLESS)], 50)

    after = state(keyed)
    assert set(after.pop("instances")) <= set(before.pop("instances"))  # one may have been reaped meanwhile
    assert after == before
    assert {401} < set(router_said) <= {200, 303, 400, 401, 403, 404, 405, 413}
    assert set(agent_said) <= {200, 401, 404, 405}


@pytest.mark.parametrize("key", ["inference", "status", "admin"])
def test_random_requests_with_a_key_break_nothing(keyed: Keyed, key: str) -> None:
    with keyed.client(key) as http:
        http.timeout = httpx.Timeout(LIMIT_S)
        output = fuzzed(http, open_to_all(ROUTER), 50)
        well = http.get("/health")

    assert {200, 400, 404} & set(output)
    assert well.is_success


def test_random_requests_with_the_fleet_token_break_nothing(keyed: Keyed) -> None:
    url, token = f"http://{keyed.stack.env['CORTEX_AGENT__LISTEN']}", fleet_token(keyed)
    with httpx.Client(
        base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=LIMIT_S, trust_env=False
    ) as http:
        output = fuzzed(http, open_to_all(AGENT), 50)
        well = http.get("/health")

    assert {200, 400, 404} & set(output)
    assert well.is_success
