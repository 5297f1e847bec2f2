"""What is sent: the requests of each scenario, and how many."""

from msgspec import Struct

from tests.bench.servers import HOLD

MODEL = "bench"
"""An alias: the router looks it up."""
_PROMPT = '{"role":"user","content":"Hello!"}'


class Scenario(Struct, frozen=True, kw_only=True):
    """Requests of one kind. `share` of the number of plain requests are sent, `connections` at a time."""

    body: bytes
    path: str = "/v1/chat/completions"
    share: float = 1.0
    connections: int = 16
    translates: bool = False
    """Only a gateway can serve it."""
    baseline: str = ""
    """The scenario whose relay it is compared with, if it has none of its own."""
    key: str = "bench"
    status: int = 200


def _body(inside: str) -> bytes:
    return b'{"model":"%b",%b}' % (MODEL.encode(), inside.encode())


SCENARIOS = {
    "plain": Scenario(body=_body(f'"messages":[{_PROMPT}]')),
    "plain, 64 connections": Scenario(body=_body(f'"messages":[{_PROMPT}]'), connections=64),
    "stream of 100": Scenario(body=_body(f'"stream":true,"messages":[{_PROMPT}]'), share=0.06),
    "stream to messages": Scenario(
        body=_body(f'"stream":true,"max_tokens":100,"messages":[{_PROMPT}]'),
        path="/v1/messages",
        share=0.06,
        translates=True,
        baseline="stream of 100",
    ),
    "stream to responses": Scenario(
        body=_body('"stream":true,"input":"Hello!"'),
        path="/v1/responses",
        share=0.06,
        translates=True,
        baseline="stream of 100",
    ),
    "body of 10 MB": Scenario(
        body=_body(f'"messages":[{_PROMPT.replace("Hello!", "word " * 2_000_000)}]'), share=0.006, connections=2
    ),
    "429": Scenario(
        body=_body(f'"messages":[{_PROMPT}]'), key="limited", translates=True, status=429, baseline="plain"
    ),
}
WAITING = b'{"model":"bench/cold","stream":true,"messages":[%b]}' % _PROMPT.encode()
HELD = _body(f'"stream":true,"messages":[{_PROMPT.replace("Hello!", HOLD.decode())}]')
