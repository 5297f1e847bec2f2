"""The command line on a running cortex: output and exit codes."""

import json
import signal
import subprocess
import threading

import pytest

from tests.e2e.workers import TWO
from tests.support.stack import CORTEX, Stack, eventually

pytestmark = pytest.mark.parametrize("stack", [TWO], indirect=True)


def test_call_streams_an_answer_and_reads_its_prompt_from_a_pipe(stack: Stack) -> None:
    result = stack.cli("call", "fake/steps", "hi")
    piped = subprocess.run(
        [*CORTEX, "call", "steps"], env=stack.env, input="hi", capture_output=True, text=True, timeout=60, check=False
    )
    unknown = stack.cli("call", "fake/step", "hi")

    assert (result.returncode, result.stdout) == (0, "one two three\n")
    assert piped.stdout == "one two three\n"
    assert unknown.returncode == 4
    assert "did you mean 'fake/steps'" in unknown.stderr
    assert "cortex fn ls" in unknown.stderr


def test_ctrl_c_ends_a_call_with_130_and_prints_nothing(stack: Stack) -> None:
    process = subprocess.Popen(
        [*CORTEX, "call", "fake/streams", "hi"],
        env=stack.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.read(1)

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)

    assert process.returncode == 130
    assert err == ""


def test_why_explains_a_function_and_a_request(stack: Stack) -> None:
    stack.cool("fake/cold")
    body = {"model": "fake/cold", "messages": [{"role": "user", "content": "hi"}]}
    stack.http.post("/v1/chat/completions", json=body, headers={"x-request-id": "cli-why"})

    def known() -> bool:
        answer = json.loads(stack.cli("why", "cli-why", "--json").stdout)
        return {"waited", "proposed", "ready"} <= {r["what"] for r in answer["decisions"]}

    def explained() -> str:
        """Return what is printed for the request; nothing while the worker that served it does not answer in time."""
        text = stack.cli("why", "cli-why").stdout
        return text if "cli-why:" in text else ""

    eventually(known, what="the decisions")
    request = eventually(explained, what="the worker that served the request to answer")
    function = stack.cli("why", "fake/cold").stdout
    unknown = stack.cli("why", "who-knows")

    assert "cli-why: fake/cold (chat), over, status 200" in request
    assert "nothing was ready" in request
    assert "the best of the hosts that take it" in function
    assert unknown.returncode == 4


def test_requests_are_listed_and_cancelled(stack: Stack) -> None:
    body = {"model": "fake/streams", "messages": [{"role": "user", "content": "hi"}], "stream": True}

    def ask() -> None:
        stack.http.post("/v1/chat/completions", json=body, headers={"x-request-id": "cli-req"})

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: "cli-req" in stack.cli("req", "ls").stdout, what="the request")

    cancelled = stack.cli("req", "cancel", "cli-req")
    asking.join(20)

    assert cancelled.stdout == "cli-req: cancelled\n"
    assert not asking.is_alive()
    assert stack.cli("req", "cancel", "cli-req").returncode == 4


@pytest.mark.long
def test_logs_of_the_current_and_the_previous_run_are_printed(stack: Stack) -> None:
    stack.chat("fake/cold")
    now = stack.cli("fn", "logs", "fake/cold").stdout
    stack.cool("fake/cold")
    gone = stack.cli("fn", "logs", "fake/cold").stdout
    stack.chat("fake/cold")
    before = stack.cli("fn", "logs", "fake/cold", "--run", "previous", "--grep", "startup").stdout
    never = stack.cli("fn", "logs", "fake/stranger", "--run", "previous")

    assert "Application startup complete" in now
    assert "Application startup complete" in gone
    assert "Application startup complete" in before
    assert len(before.splitlines()) == 1
    assert never.returncode == 4


def test_lists_are_json_with_stable_names(stack: Stack) -> None:
    stack.chat("fake/steps")

    shown = json.loads(stack.cli("fn", "show", "steps", "--json").stdout)
    answer = json.loads(stack.cli("top", "--json").stdout)
    hosts = json.loads(stack.cli("host", "show", "here", "--json").stdout)

    assert {"id", "aliases", "state", "instances", "min", "max", "pinned", "last_start", "expected_start_s"} <= set(
        shown
    )
    assert set(answer) == {"health", "hosts", "functions", "traffic", "requests"}
    assert {"name", "devices", "instances", "failures", "cordoned"} <= set(hosts)
    top = stack.cli("top", "--once").stdout
    assert "here" in top
    assert "whole answer p50" in top


def test_the_doctor_lists_problems_with_their_fix(stack: Stack) -> None:
    findings = {f["about"]: f["level"] for f in json.loads(stack.cli("doctor", "--json").stdout)}
    away = dict(stack.env, CORTEX_URL="http://127.0.0.1:9", CORTEX_REDIS_URL="redis://127.0.0.1:9")
    lost = subprocess.run([*CORTEX, "doctor"], env=away, capture_output=True, text=True, timeout=60, check=False)

    # On a busy machine, answers that take seconds are warnings.
    assert {findings[about] for about in ("router", "redis", "agent here", "fleet token")} <= {"ok", "warning"}
    assert lost.returncode == 1
    assert "no router answers at http://127.0.0.1:9" in lost.stdout
    assert "Start it, or correct `[redis] url`." in lost.stdout


def test_shell_completion_lists_functions(stack: Stack) -> None:
    words = {"COMP_WORDS": "cortex fn warm fake/ste", "COMP_CWORD": "3", "_CORTEX_COMPLETE": "bash_complete"}

    result = subprocess.run(CORTEX, env={**stack.env, **words}, capture_output=True, text=True, timeout=60, check=False)

    assert "plain,fake/steps" in result.stdout
    assert "_CORTEX_COMPLETE=bash_complete" in stack.cli("completion", "bash").stdout
