"""A request says how long its instance stays idle, within the bound of the catalogue."""

import openai
import pytest

from tests.e2e.workers import TWO
from tests.support.stack import Stack, eventually

pytestmark = pytest.mark.parametrize("stack", [TWO], indirect=True)


def stays_s(stack: Stack, name: str) -> float:
    """Return how long a function's only instance stays if no request comes."""
    function = stack.function(name)
    (instance,) = function["instances"]
    return float((instance["reap_at"] or 0.0) - function["now"])


def test_a_request_shortens_the_time_and_the_instance_is_let_go_soon(stack: Stack) -> None:
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.with_raw_response.create(
        model="fake/patient", messages=[{"role": "user", "content": "Hello!"}], extra_body={"keep_alive": 0}
    )

    assert "x-cortex-dropped" not in answer.headers
    eventually(lambda: stack.state("fake/patient") == "cold", within_s=20, what="it to be let go")


def test_a_request_prolongs_the_time_and_a_later_one_that_says_nothing_restores_it(stack: Stack) -> None:
    long = stack.http.post(
        "/v1/chat/completions",
        json={"model": "fake/brief", "messages": [{"role": "user", "content": "Hello!"}]},
        headers={"x-cortex-keep-alive": "24h"},
    )
    eventually(lambda: 3000 < stays_s(stack, "fake/brief") <= 3600, what="the bound of the catalogue")
    plain = [stack.chat("fake/brief").status_code for _ in range(6)]

    assert long.status_code == 200
    assert plain == [200] * 6
    eventually(lambda: 0 < stays_s(stack, "fake/brief") <= 30, what="the function's own time")


@pytest.mark.parametrize(
    ("headers", "body", "field"),
    [({}, {"keep_alive": "soon"}, "keep_alive"), ({"x-cortex-keep-alive": "1 day"}, {}, "x-cortex-keep-alive")],
)
def test_what_is_no_duration_is_refused_with_its_name(
    stack: Stack, headers: dict[str, str], body: dict[str, str], field: str
) -> None:
    question = {"model": "fake/brief", "messages": [{"role": "user", "content": "Hello!"}]}

    answer = stack.http.post("/v1/chat/completions", json=question | body, headers=headers)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
