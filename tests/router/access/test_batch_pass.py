"""Passes of batch workers, and whose rights they give."""

from typing import Any

import pytest

from cortex.platform.api_keys import LOCAL, RIGHTS, Limits, Principal, Priority, Right, Scope
from cortex.platform.settings import Gateway
from cortex.router.access import batch_pass
from cortex.router.access.auth import AuthGuard
from cortex.router.errors import NoKey, NotAllowed

NOW = 1_000_000.0
OWNER = Principal(id="k1", name="owner", scope=Scope.ADMIN, rights=RIGHTS[Scope.ADMIN], limits=Limits(rpm=3))


class Ring:
    """A key ring with one key."""

    loaded, has_keys, has_local = True, True, True

    def __init__(self, *holders: Principal) -> None:
        self._holders = {h.id: h for h in holders}

    def find(self, secret: str) -> Principal | None:
        return None

    def by_id(self, id: str) -> Principal | None:
        return self._holders.get(id)


def guard(*holders: Principal) -> AuthGuard:
    """Return a guard of a router whose fleet has the tokens `new` and `old`."""
    ring: Any = Ring(*holders)
    sessions: Any = None
    return AuthGuard(ring, sessions, Gateway(), lambda: ("new", "old"))


def request(secret: str) -> dict[str, Any]:
    """Return a request with a bearer token."""
    headers = [(b"authorization", f"Bearer {secret}".encode())]
    return {"headers": headers, "method": "POST", "path": "/v1/chat/completions", "scheme": "http", "client": None}


@pytest.mark.parametrize("token", ["new", "old"])
def test_a_pass_is_valid_until_it_expires(token: str) -> None:
    secret = batch_pass.make(token, "k1", NOW)

    assert batch_pass.key_of(secret, ("new", "old"), NOW + 59) == "k1"
    assert batch_pass.key_of(secret, ("new", "old"), NOW + 61) is None


@pytest.mark.parametrize(
    "secret",
    [
        batch_pass.make("another", "k1", NOW),
        batch_pass.make("new", "k1", NOW).replace("k1", "k2"),
        batch_pass.make("new", "k1", NOW + 1e6),
        "cortex-batch.",
        "cortex-batch.k1",
        "cortex-batch.k1.99999999999.",
    ],
)
def test_a_forged_or_malformed_pass_is_invalid(secret: str) -> None:
    assert batch_pass.key_of(secret, ("new", "old"), NOW) is None


async def test_a_pass_gives_the_keys_right_to_inference_at_low_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex.router.access.auth.time.time", lambda: NOW)
    caller = await guard(OWNER).authorize(request(batch_pass.make("new", "k1", NOW)), Right.INFERENCE)

    assert (caller.id, caller.priority, caller.is_batch, caller.limits.rpm) == ("k1", Priority.LOW, True, 3)
    with pytest.raises(NotAllowed):
        await guard(OWNER).authorize(request(batch_pass.make("new", "k1", NOW)), Right.ADMIN)


async def test_a_pass_for_a_revoked_key_or_one_without_inference_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cortex.router.access.auth.time.time", lambda: NOW)
    watcher = Principal(id="k1", name="w", scope=Scope.STATUS, rights=RIGHTS[Scope.STATUS])

    for ring in (guard(), guard(watcher), guard(LOCAL)):
        with pytest.raises(NoKey):
            await ring.authorize(request(batch_pass.make("new", "k1", NOW)), Right.INFERENCE)
