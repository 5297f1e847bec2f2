"""`cortex status` and `cortex fn show`: a function that waits for memory says for whose."""

import pytest
from click.testing import CliRunner

from cortex.cli import fn_show, status
from cortex.cli.client import Router
from cortex.router.activation.waits import Wait
from cortex.router.api_types import FunctionView, Health, HostsAnswer, TrafficAnswer, TrafficTotal

WAIT = Wait(host="a", position=1, waited_s=5.0, turn_in_s=10.0, closes=("busy",), start_s=None)
SENTENCE = "it has waited for memory on a for 5 s; busy closes for it in at most 10 s"
WAITS = FunctionView(id="f", now=0.0, engine="fake", state="cold", waiting=2, in_line=(WAIT,))
BUSY = FunctionView(id="busy", now=0.0, engine="fake", state="ready", in_flight=3)
COLD = FunctionView(id="g", now=0.0, engine="fake", state="cold")


def test_the_summary_has_the_cold_functions_that_requests_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Router, "health", lambda self: Health(status="ok"))
    monkeypatch.setattr(Router, "hosts", lambda self: HostsAnswer(hosts=(), silent=()))
    monkeypatch.setattr(Router, "functions", lambda self: (WAITS, BUSY, COLD))

    result = CliRunner().invoke(status.status, [])

    assert result.output.splitlines()[-3:] == [
        "3 functions, 1 not cold:",
        "  busy: ready, 3 in flight",
        f"  f: cold, 2 waiting: {SENTENCE}",
    ]


def test_the_details_of_a_function_have_its_place_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Router, "function", lambda self, name: WAITS)
    monkeypatch.setattr(
        Router,
        "traffic",
        lambda self: TrafficAnswer(now=0.0, bucket_s=60, last_hour=TrafficTotal(), hour=(), functions={}),
    )

    result = CliRunner().invoke(fn_show.show, ["f"])

    assert f"  in line            {SENTENCE}\n" in result.output
