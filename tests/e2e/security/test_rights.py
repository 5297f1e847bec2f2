"""Every route of the running router, agent and metrics port, called by every kind of caller.

The routes are read off the applications: one that has no row here fails.
"""

import re
from pathlib import Path

import httpx
import pytest
from litestar import Litestar

from cortex.platform.agent import api
from cortex.platform.agent.routes.contexts import CONTEXT
from cortex.platform.agent.routes.offers import NEIGHBOUR
from cortex.platform.api_keys import digest
from cortex.platform.keys import agent_token, host_token, neighbour_token, worker_key
from cortex.platform.settings import Settings
from cortex.router.app import create_app
from cortex.router.dispatch import METHOD, NEEDS, Dispatcher
from tests.e2e.security.keyed import Keyed
from tests.support.stack import eventually

pytestmark = [pytest.mark.xdist_group("security"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

OPEN, INFERENCE, STATUS, ADMIN, FLEET = "nothing", "inference", "status", "admin", "fleet"
ROUTER = {
    "GET /": OPEN,
    "GET /health": OPEN,
    "GET /api/ps": INFERENCE,
    "GET /api/tags": INFERENCE,
    "GET /api/version": INFERENCE,
    "DELETE /api/delete": INFERENCE,
    "POST /api/blobs/{digest}": INFERENCE,
    "POST /api/chat": INFERENCE,
    "POST /api/copy": INFERENCE,
    "POST /api/create": INFERENCE,
    "POST /api/embed": INFERENCE,
    "POST /api/embeddings": INFERENCE,
    "POST /api/generate": INFERENCE,
    "POST /api/pull": INFERENCE,
    "POST /api/push": INFERENCE,
    "POST /api/show": INFERENCE,
    "GET /v1/models": INFERENCE,
    "GET /v1/usage": INFERENCE,
    "POST /v1/files": INFERENCE,
    "GET /v1/files": INFERENCE,
    "GET /v1/files/{id}": INFERENCE,
    "GET /v1/files/{id}/content": INFERENCE,
    "DELETE /v1/files/{id}": INFERENCE,
    "POST /v1/batches": INFERENCE,
    "GET /v1/batches": INFERENCE,
    "GET /v1/batches/{id}": INFERENCE,
    "POST /v1/batches/{id}/cancel": INFERENCE,
    "POST /v1/messages/batches": INFERENCE,
    "GET /v1/messages/batches": INFERENCE,
    "GET /v1/messages/batches/{id}": INFERENCE,
    "GET /v1/messages/batches/{id}/results": INFERENCE,
    "POST /v1/messages/batches/{id}/cancel": INFERENCE,
    "DELETE /v1/messages/batches/{id}": INFERENCE,
    "GET /v1/models/{model_id}": INFERENCE,
    "POST /v1/chat/completions": INFERENCE,
    "POST /v1/completions": INFERENCE,
    "POST /v1/embeddings": INFERENCE,
    "POST /v1/messages": INFERENCE,
    "POST /v1/messages/count_tokens": INFERENCE,
    "POST /v1/audio/speech": INFERENCE,
    "POST /v1/audio/transcriptions": INFERENCE,
    "POST /v1/audio/translations": INFERENCE,
    "POST /v1/images/edits": INFERENCE,
    "POST /v1/images/generations": INFERENCE,
    "POST /v1/rerank": INFERENCE,
    "POST /v2/rerank": INFERENCE,
    "POST /v1/responses": INFERENCE,
    "GET /v1/responses/{id}": INFERENCE,
    "DELETE /v1/responses/{id}": INFERENCE,
    "GET /v1/responses/{id}/input_items": INFERENCE,
    "POST /v1/responses/{id}/cancel": INFERENCE,
    "POST /v1/responses/compact": INFERENCE,
    "POST /v1/conversations": INFERENCE,
    "GET /v1/conversations/{id}": INFERENCE,
    "GET /v1/conversations/{id}/items": INFERENCE,
    "DELETE /v1/conversations/{id}": INFERENCE,
    "POST /tokenize": INFERENCE,
    "POST /detokenize": INFERENCE,
    "POST /apply-template": INFERENCE,
    "POST /infill": INFERENCE,
    "POST /score": INFERENCE,
    "POST /v1/score": INFERENCE,
    "POST /pooling": INFERENCE,
    "POST /v1/pooling": INFERENCE,
    "GET /props": INFERENCE,
    "GET /slots": INFERENCE,
    "GET /upstream/{rest}": INFERENCE,
    "GET /admin/functions": STATUS,
    "GET /admin/functions/{name}": STATUS,
    "GET /admin/hosts": STATUS,
    "GET /admin/keys": STATUS,
    "GET /admin/keys/{name}": STATUS,
    "GET /admin/requests": STATUS,
    "GET /admin/traffic": STATUS,
    "GET /admin/requests/{id}": STATUS,
    "GET /status": STATUS,
    "GET /status/assets/{name}": OPEN,
    "GET /status/function/{name}": STATUS,
    "GET /status/host/{name}": STATUS,
    "GET /status/live": STATUS,
    "GET /status/log": ADMIN,
    "GET /status/login": OPEN,
    "POST /status/login": OPEN,
    "POST /status/logout": OPEN,
    "GET /status/plan": STATUS,
    "GET /status/usage": STATUS,
    "GET /admin/decisions": STATUS,
    "GET /admin/events": STATUS,
    "GET /admin/audit": ADMIN,
    "GET /admin/usage": STATUS,
    "GET /admin/batches": STATUS,
    "GET /admin/batches/{id}": STATUS,
    "POST /admin/batches/{id}/cancel": ADMIN,
    "POST /admin/usage/forget": ADMIN,
    "GET /admin/hosts/{host}/events": ADMIN,
    "GET /admin/instances": STATUS,
    "GET /admin/instances/{instance}/logs": ADMIN,
    "GET /admin/logs": ADMIN,
    "GET /admin/contexts": STATUS,
    "POST /admin/contexts/remove": ADMIN,
    "GET /admin/weights": STATUS,
    "POST /admin/weights/remove": ADMIN,
    "POST /admin/weights/fetch": ADMIN,
    "GET /admin/weights/estimate": STATUS,
    "GET /admin/jobs": STATUS,
    "POST /admin/jobs/{job}/cancel": ADMIN,
    "POST /admin/functions/{name}": ADMIN,
    "POST /admin/hosts/{host}/{verb}": ADMIN,
    "POST /admin/keys": ADMIN,
    "POST /admin/keys/{name}": ADMIN,
    "POST /admin/keys/{name}/revoke": ADMIN,
    "POST /admin/keys/{name}/rotate": ADMIN,
    "POST /admin/requests/{id}/cancel": ADMIN,
}
MAY = {
    OPEN: {
        "",
        "wrong",
        "fleet",
        "host",
        "host-file",
        "worker",
        "digest",
        "revoked",
        "inference",
        "other",
        "status",
        "admin",
        "local",
    },
    INFERENCE: {"inference", "other", "admin", "local"},
    STATUS: {"status", "admin", "local"},
    ADMIN: {"admin", "local"},
}
SIGNING = {"/status/login", "/status/logout"}
AGENT = {
    "GET /health": OPEN,
    "GET /discovery": FLEET,
    "GET /version": FLEET,
    "GET /models": FLEET,
    "GET /models/{rest}": FLEET,
    "POST /models/load": FLEET,
    "POST /models/unload": FLEET,
    "POST /v1/chat/completions": FLEET,
    "POST /v1/completions": FLEET,
    "GET /contexts/{context_id}": CONTEXT,
    "GET /devices": FLEET,
    "GET /events": FLEET,
    "GET /instances": FLEET,
    "GET /instances/{instance_id}": FLEET,
    "GET /instances/{instance_id}/logs": FLEET,
    "GET /jobs": FLEET,
    "GET /logs": FLEET,
    "GET /metrics": FLEET,
    "GET /offers": NEIGHBOUR,
    "GET /offers/{digest}": NEIGHBOUR,
    "GET /record": FLEET,
    "GET /weights": FLEET,
    "POST /contexts/failed": FLEET,
    "POST /contexts/leave": FLEET,
    "POST /contexts/remove": FLEET,
    "POST /contexts/restore": FLEET,
    "POST /contexts/seat": FLEET,
    "POST /drain": FLEET,
    "POST /kernels": NEIGHBOUR,
    "POST /functions/adapter": FLEET,
    "POST /functions/cool": FLEET,
    "POST /functions/ensure": FLEET,
    "POST /functions/forget": FLEET,
    "POST /functions/plan": FLEET,
    "POST /jobs/{job}/cancel": FLEET,
    "POST /weights/estimate": FLEET,
    "POST /weights/fetch": FLEET,
    "POST /weights/remove": FLEET,
    "PUT /catalogue": FLEET,
    "PUT /neighbours": FLEET,
}


def routes(app: Litestar | Dispatcher) -> dict[str, object]:
    """Return what every route says it needs, by method and path."""
    if isinstance(app, Dispatcher):
        return routes(app.rest) | {f"{METHOD} {path}": NEEDS for path in app.inference}
    return {
        f"{method} {route.path_format}": handler.opt.get("needs")
        for route in app.routes
        for handler in getattr(route, "route_handlers", [])
        for method in handler.http_methods
        if method != "OPTIONS"
    }


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder: Path = tmp_path_factory.mktemp("app")
    (folder / "models.toml").write_text("")
    return Settings(models_config=str(folder / "models.toml"), token_file=str(folder / "token"))


async def test_every_route_of_the_router_has_a_row_and_a_right(settings: Settings) -> None:
    result = routes(create_app(settings))

    assert {r: n for r, n in result.items() if ROUTER.get(r) != n} == {}, "add a row to the table above, or the mark"
    assert {r for r in ROUTER if r not in result} == set()


@pytest.mark.parametrize("caller", sorted(MAY[OPEN]))
def test_every_route_of_the_router_is_open_to_exactly_its_callers(keyed: Keyed, caller: str) -> None:
    keyed.everywhere("inference", 200)
    add_what_is_no_key(keyed)
    expected, readings = {}, {}
    with keyed.client(caller) as http:
        for route, needs in ROUTER.items():
            expected[route] = "open" if caller in MAY[needs] else "closed"
            readings[route] = call_route(http, route)

    assert readings == expected


async def test_every_route_of_the_agent_has_a_row(settings: Settings) -> None:
    result = routes(api.create_app(settings))

    assert {route: needs or FLEET for route, needs in result.items()} == AGENT, "add a row to the table above"


@pytest.mark.parametrize(
    "caller", [*sorted(MAY[OPEN]), "other-host", "host-elsewhere", "neighbour", "neighbour-elsewhere"]
)
def test_every_route_of_an_agent_but_health_needs_the_fleets_or_the_hosts_token(keyed: Keyed, caller: str) -> None:
    add_what_is_no_key(keyed)
    expected, readings = {}, {}
    with httpx.Client(
        base_url=f"http://{keyed.stack.env['CORTEX_AGENT__LISTEN']}",
        headers={"authorization": f"Bearer {keyed.keys.get(caller, caller)}"} if caller else {},
        trust_env=False,
    ) as http:
        for route, needs in AGENT.items():
            is_for = {"fleet": True, "host": True, "neighbour": needs == NEIGHBOUR}.get(caller, False)
            expected[route] = "open" if is_for or needs == OPEN else "closed"
            readings[route] = call_route(http, route)

    assert readings == expected


@pytest.mark.parametrize("caller", ["", "wrong", "status", "admin", "inference"])
def test_the_metrics_port_has_one_route_and_rejects_other_keys(keyed: Keyed, caller: str) -> None:
    statuses = {}
    with httpx.Client(
        base_url=f"http://{keyed.stack.env['CORTEX_GATEWAY__METRICS_LISTEN']}",
        headers={"authorization": f"Bearer {keyed.keys.get(caller, caller)}"} if caller else {},
        trust_env=False,
    ) as http:
        eventually(lambda: http.get("/metrics").status_code in (200, 403), what="the metrics port")
        for route in {*ROUTER, *AGENT, "GET /metrics", "POST /metrics", "PUT /metrics", "GET /metrics/"}:
            method, path = route.split()
            statuses[route] = http.request(method, re.sub(r"\{[^}]*\}", "any", path), content=b"x").status_code

    assert statuses.pop("GET /metrics") == (403 if caller == "inference" else 200)
    assert set(statuses.values()) == {404}


def call_route(http: httpx.Client, route: str) -> str:
    """Ask for a route in a way that does no harm where it is let in, and say whether it was."""
    method, path = route.split()
    path = re.sub(r"\{[^}]*\}", "nobody", path)
    with http.stream(method, path, content=b"not json" if method != "GET" else None) as answer:
        assert answer.status_code < 500, f"{route}: {answer.status_code}"
        if path in SIGNING:
            return "open"  # it looks at the key itself
        to_login = answer.headers.get("location", "").endswith("status/login")
        return "closed" if answer.status_code in (401, 403) or to_login else "open"


def fleet_token(keyed: Keyed) -> str:
    return (keyed.stack.folder / "state" / "cortex" / "fleet.token").read_text().strip()


def add_what_is_no_key(keyed: Keyed) -> None:
    """Add secrets that open something else, and those that opened something once."""
    if "revoked" in keyed.keys:
        return
    token = fleet_token(keyed)
    with httpx.Client(headers={"authorization": f"Bearer {token}"}, trust_env=False) as http:
        record = http.get(f"http://{keyed.stack.env['CORTEX_AGENT__LISTEN']}/record").json()
    keyed.keys |= {
        "fleet": token,
        "worker": a_workers_key(keyed),
        "host": agent_token(host_token(token, record["name"]), record["address"]),
        "other-host": agent_token(host_token(token, "other-host"), record["address"]),
        "host-elsewhere": agent_token(host_token(token, record["name"]), "http://elsewhere:1"),
        "neighbour": neighbour_token(host_token(token, record["name"]), record["address"]),
        "neighbour-elsewhere": neighbour_token(host_token(token, record["name"]), "http://elsewhere:1"),
        "host-file": host_token(token, record["name"]),
        "digest": digest(keyed.keys["admin"]),
    }
    revoked = keyed.make("revoked", scope="admin")
    assert keyed.cli("key", "revoke", "revoked").code == 0
    keyed.everywhere(revoked, 401)
    keyed.keys["revoked"] = revoked


def a_workers_key(keyed: Keyed) -> str:
    """Return the key of a worker that runs: it opens that worker, and nothing else."""
    keyed.ask("inference").raise_for_status()
    with keyed.client("admin") as http:
        instance = http.get("/admin/functions/one%2Fopen").json()["instances"][0]
    return worker_key(host_token(fleet_token(keyed), "here"), instance["id"])
