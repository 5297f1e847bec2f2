"""Jinja filters that decide about the fleet: which machines are listed twice, what still needs the old token, and with
which request a deployment ends."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

QUESTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}),
    "completions": ("/v1/completions", {"prompt": "Hello", "max_tokens": 16}),
    "embeddings": ("/v1/embeddings", {"input": "Hello."}),
    "rerank": ("/v1/rerank", {"query": "Hello.", "documents": ["Hello!", "Good-bye!"]}),
}
"""A small request of each dialect that needs no file, the preferred one first: path, and body without `model`."""
DEMO = "cortex/demo"


def cortex_first(machines: Iterable[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Return every machine's value of the first of these variables that it has."""
    return [next(str(machine[n]) for n in names if n in machine) for machine in machines]


def cortex_shared(machines: Iterable[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Return the values that more than one machine has, as `NAME VALUE`; `names` as for `cortex_first`."""
    counts = Counter(cortex_first(machines, names))
    return sorted(f"{names[0]} {value}" for value, count in counts.items() if count > 1)


def cortex_token_holders(
    seen: Mapping[str, Any], health: Mapping[str, Any], agents: Iterable[str], since: str
) -> list[str]:
    """Return the reasons to keep the old token. The router's hosts, its health, the inventory's hosts, and the Unix
    time since when all machines use the new token ("" while some may not)."""
    if not since:
        return ["not every machine uses the new token yet: run `just rotate-token INVENTORY` again"]
    if (record := health.get("record", "ok")) != "ok":
        return [f"the router does not know what runs, its record is '{record}': start Redis (cortex-redis.service)"]
    hosts: list[Mapping[str, Any]] = [*seen.get("hosts", ())]
    reporting = {host["name"] for host in hosts}
    away = {*agents, *(host["name"] for host in seen.get("silent", ()))} - reporting
    older = {i["function"] for host in hosts for i in host["instances"] if i["created"] < float(since)}
    return [
        *(
            f"host {name} does not report, its workers may still run: start its agent, or take it out of the inventory"
            for name in sorted(away)
        ),
        *(
            f"{function} was started under the old token: `cortex fn cool {function}`, or wait until it is idle"
            for function in sorted(older)
        ),
    ]


def cortex_questions(models: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the requests to one function of `/v1/models`, in the order in which to try them; [] if none has one.

    (1) A function that can start is preferred, (2) then one that chats, (3) then a warm one, (4) then one that does
    nothing but chat, (5) then the demonstration, (6) then the first of the catalogue.
    Some functions accept several dialects, and their model decides which of them it answers: the next request is for
    when it refuses the one before. Builds that do not list `dialects` accept any.
    """
    best = min(
        (
            (
                not model["loaded"] and (not model["feasible_on"] or model["state"] == "failing"),  # (1)
                list(QUESTIONS).index(serves[0]),  # (2)
                not model["loaded"],  # (3)
                len(serves),  # (4)
                model["id"] != DEMO,  # (5)
                position,  # (6)
                model,
                serves,
            )
            for position, model in enumerate(models)
            if (serves := _askable(model))
        ),
        default=None,
    )
    if best is None:
        return []
    *_, model, serves = best
    return [
        {
            "model": model["id"],
            "dialect": dialect,
            "path": QUESTIONS[dialect][0],
            "body": {"model": model["id"], **QUESTIONS[dialect][1]},
            "state": "warm" if model["loaded"] else model["state"],
        }
        for dialect in serves
    ]


def _askable(model: Mapping[str, Any]) -> list[str]:
    """Return the dialects of QUESTIONS that a model serves. One that chats also completes."""
    serves = model.get("dialects", ("chat", "embeddings", "rerank"))
    return [d for d in QUESTIONS if d in serves and not (d == "completions" and "chat" in serves)]


def cortex_gist(answer: Mapping[str, Any], dialect: str) -> str:
    """Return what an answer to one of QUESTIONS says, for people."""
    match dialect:
        case "chat":
            message = answer["choices"][0]["message"]
            return str(message.get("content") or message.get("reasoning_content") or "an answer without text")
        case "completions":
            return str(answer["choices"][0]["text"] or "an answer without text")
        case "embeddings":
            return f"an embedding of {len(answer['data'][0]['embedding'])} numbers"
    return f"{len(answer['results'])} documents in order"


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "cortex_first": cortex_first,
            "cortex_gist": cortex_gist,
            "cortex_questions": cortex_questions,
            "cortex_shared": cortex_shared,
            "cortex_token_holders": cortex_token_holders,
        }
