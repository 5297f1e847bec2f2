"""Random requests to every route of a running router and agent: no 5xx, no hang, and no effect without a key.

`just test-security` runs it. The description that schemathesis reads is made from the applications' own routes, so
that no route is left out; bodies are described where a body is read. Streams that never end are left out, and so
is what is said about a 503: it is an answer, not a mistake.
"""

import asyncio
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cortex.platform.agent import api as agent_api
from cortex.platform.settings import Settings
from cortex.router.app import create_app
from tests.e2e.security.keyed import Keyed, started
from tests.e2e.security.test_rights import fleet_token, routes
from tests.support import program

EXAMPLES, SECONDS = 12, 60
ENDLESS = ("/status/live", "/admin/events", "/admin/logs", "/logs")
NAMES = {
    "type": "string",
    "enum": ["one/open", "two/other", "mine", "nobody", "one/dictation", "one/speaks", "one/draws", "two/hears"],
}
MESSAGES = {
    "type": "array",
    "items": {"type": "object", "properties": {"role": {"type": "string"}, "content": {}}, "required": ["role"]},
}
CHAT: dict[str, Any] = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": {
        "model": NAMES,
        "messages": MESSAGES,
        "stream": {"type": "boolean"},
        "max_tokens": {"type": "integer"},
        "temperature": {"type": "number"},
        "stop": {},
        "tools": {"type": "array", "items": {"type": "object"}},
        "tool_choice": {},
        "response_format": {"type": "object"},
    },
}
STATE: dict[str, Any] = {name: {} for name in ("store", "background", "previous_response_id", "conversation", "stream")}
BODIES: dict[str, Any] = {
    "/v1/chat/completions": CHAT,
    "/v1/messages": CHAT,
    "/v1/messages/count_tokens": CHAT,
    "/v1/completions": {"type": "object", "required": ["model"], "properties": {"model": NAMES, "prompt": {}}},
    "/v1/responses": {"type": "object", "required": ["model"], "properties": {"model": NAMES, "input": {}, **STATE}},
    "/v1/conversations": {"type": "object", "properties": {"items": {}, "metadata": {}}},
    "/v1/embeddings": {"type": "object", "required": ["model"], "properties": {"model": NAMES, "input": {}}},
    "/v1/rerank": {"type": "object", "required": ["model"], "properties": {"model": NAMES, "documents": {}}},
    "/v2/rerank": {"type": "object", "required": ["model"], "properties": {"model": NAMES, "documents": {}}},
    "/tokenize": {"type": "object", "properties": {"model": NAMES, "content": {}, "prompt": {}, "messages": MESSAGES}},
    "/detokenize": {"type": "object", "properties": {"model": NAMES, "tokens": {}}},
    "/apply-template": CHAT,
    "/infill": {"type": "object", "properties": {"model": NAMES, "input_prefix": {}, "input_suffix": {}, "stream": {}}},
    "/score": {"type": "object", "properties": {"model": NAMES, "text_1": {}, "text_2": {}}},
    "/v1/score": {"type": "object", "properties": {"model": NAMES, "queries": {}, "documents": {}}},
    "/pooling": {"type": "object", "properties": {"model": NAMES, "input": {}}},
    "/v1/pooling": {"type": "object", "properties": {"model": NAMES, "input": {}}},
    "/v1/audio/speech": {
        "type": "object",
        "required": ["model", "input"],
        "properties": {"model": NAMES, "input": {}, "voice": {}, "speed": {}, "stream_format": {"type": "string"}},
    },
    "/v1/images/generations": {
        "type": "object",
        "required": ["model", "prompt"],
        "properties": {"model": NAMES, "prompt": {}, "n": {}, "size": {}, "stream": {"type": "boolean"}},
    },
    "/api/chat": {
        **CHAT,
        "properties": {**CHAT["properties"], "options": {"type": "object"}, "format": {}, "think": {}},
    },
    "/api/generate": {
        "type": "object",
        "required": ["model"],
        "properties": {"model": NAMES, "prompt": {}, "raw": {}, "keep_alive": {}, "options": {"type": "object"}},
    },
    "/api/embed": {"type": "object", "required": ["model"], "properties": {"model": NAMES, "input": {}}},
    "/api/embeddings": {"type": "object", "required": ["model"], "properties": {"model": NAMES, "prompt": {}}},
    "/api/show": {"type": "object", "properties": {"model": NAMES, "name": NAMES}},
    "/api/pull": {"type": "object", "properties": {"model": NAMES, "stream": {"type": "boolean"}}},
    "/admin/keys": {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "scope": {"type": "string"}, "rpm": {"type": "integer"}},
    },
    "/admin/keys/{name}": {"type": "object", "properties": {"group": {"type": "string"}}},
}

FILE = {"type": "string", "format": "binary"}
FORMS: dict[str, Any] = {
    "/v1/audio/transcriptions": {"model": NAMES, "file": FILE, "stream": {}, "temperature": {}, "prompt": {}},
    "/v1/audio/translations": {"model": NAMES, "file": FILE, "temperature": {}},
    "/v1/images/edits": {"model": NAMES, "image": FILE, "mask": FILE, "prompt": {}, "n": {}, "size": {}},
}
"""Fields of multipart forms."""


def description(result: dict[str, object]) -> dict[str, Any]:
    """Return an OpenAPI description of an application's routes."""
    paths: dict[str, Any] = {}
    for route in result:
        method, path = route.split()
        if path.endswith(ENDLESS):
            continue
        operation: dict[str, Any] = {
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
                for name in re.findall(r"\{(\w+)\}", path)
            ],
            "responses": {"default": {"description": "whatever"}},
        }
        if method in ("POST", "PUT"):
            kind = "multipart/form-data" if path in FORMS else "application/json"
            schema = BODIES.get(path, {"type": "object", "properties": FORMS.get(path, {})})
            operation["requestBody"] = {"content": {kind: {"schema": schema}}}
        paths.setdefault(path, {})[method.lower()] = operation
    return {"openapi": "3.0.3", "info": {"title": "cortex", "version": "1"}, "paths": paths}


def fuzzed(what: str, described: dict[str, Any], url: str, key: str, folder: Path) -> bool:
    """Send random requests; say whether all went well."""
    file = folder / "openapi.json"
    file.write_text(json.dumps(described))
    print(f"== {what}", flush=True)
    done = subprocess.run(
        [
            "uvx", "--quiet", "schemathesis==4.32.5", "run", str(file), "--url", url, "--max-examples", str(EXAMPLES),
            "--max-time", str(SECONDS), "--checks", "not_a_server_error", "--continue-on-failure", "--no-shrink",
            "--generation-deterministic", "--request-timeout", "20", "--warnings", "off", "--phases", "fuzzing",
            "--suppress-health-check", "all", *(["-H", f"Authorization: Bearer {key}"] if key else []),
        ],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    print(done.stdout[-6000:] + done.stderr[-2000:], flush=True)
    statuses = [int(s) for s in re.findall(r"^\s*-? ?\[?(5\d\d)\]? ", done.stdout, re.MULTILINE)]
    return done.returncode == 0 or (bool(statuses) and set(statuses) <= {503})


def state(keyed: Keyed) -> dict[str, Any]:
    """Return what a caller without a key must not change."""
    with keyed.client("local") as http:
        return {
            "keys": sorted(k["id"] for k in http.get("/admin/keys").json()["keys"]),
            "cordoned": [h["cordoned"] for h in http.get("/admin/hosts").json()["hosts"]],
            "instances": [i["id"] for f in http.get("/admin/functions").json()["functions"] for i in f["instances"]],
        }


async def described(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the descriptions of the router and of the agent."""
    (folder / "models.toml").write_text("")
    settings = Settings(models_config=str(folder / "models.toml"), token_file=str(folder / "token"))
    return description(routes(create_app(settings))), description(routes(agent_api.create_app(settings)))


def main() -> int:
    """Fuzz, and return the exit code."""
    with tempfile.TemporaryDirectory(prefix="cortex-fuzz-") as directory:
        folder = Path(directory)
        router, agent = asyncio.run(described(folder))
        with started(folder) as keyed:
            agent_url = f"http://{keyed.stack.env['CORTEX_AGENT__LISTEN']}"
            before = state(keyed)
            well = {
                "no key, at the router": fuzzed("router, no key", router, keyed.url, "", folder),
                "no key, at the agent": fuzzed("agent, no token", agent, agent_url, "", folder),
            }
            well["callers without a key have changed nothing"] = state(keyed) == before
            for name in ("inference", "status", "admin"):
                well[f"{name}, at the router"] = fuzzed(f"router, {name}", router, keyed.url, keyed.keys[name], folder)
            well["the fleet token, at the agent"] = fuzzed("agent", agent, agent_url, fleet_token(keyed), folder)
            with keyed.client("local") as http:
                well["the router is well afterwards"] = http.get("/health").is_success
    for what, yes in well.items():
        print(f"{'well' if yes else 'NOT WELL'}: {what}")
    return 0 if all(well.values()) else 1


if __name__ == "__main__":
    sys.exit(program.run(main))
