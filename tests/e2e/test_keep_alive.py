"""A request says how long its instance stays idle, within the bound of the catalogue."""

from collections.abc import Iterator

import openai
import pytest

from tests.support.catalogues import fake
from tests.support.stack import Stack, eventually, own_redis

pytestmark = pytest.mark.xdist_group("keep-alive")

CATALOGUE = fake("patient", idle_after_s=600) + fake("brief", idle_after_s=30, keep_alive_max_s=3600)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running cortex with two router workers."""
    folder = tmp_path_factory.mktemp("keep-alive")
    with own_redis(folder) as redis_url:
        running = Stack(folder, CATALOGUE, env={"CORTEX_REDIS_URL": redis_url}, workers=2)
        try:
            yield running
        finally:
            running.end()


def stays_s(stack: Stack, name: str) -> float:
    """Return how long a function's only instance stays if no request comes."""
    function = stack.function(name)
    (instance,) = function["instances"]
    return float((instance["reap_at"] or 0.0) - function["now"])


def test_a_request_shortens_the_time_and_the_instance_is_let_go_soon(stack: Stack) -> None:
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.with_raw_response.create(
        model="patient", messages=[{"role": "user", "content": "Hello!"}], extra_body={"keep_alive": 0}
    )

    assert "x-cortex-dropped" not in answer.headers
    eventually(lambda: stack.state("patient") == "cold", within_s=20, what="it to be let go")


def test_a_request_prolongs_the_time_and_a_later_one_that_says_nothing_restores_it(stack: Stack) -> None:
    long = stack.http.post(
        "/v1/chat/completions",
        json={"model": "brief", "messages": [{"role": "user", "content": "Hello!"}]},
        headers={"x-cortex-keep-alive": "24h"},
    )
    eventually(lambda: 3000 < stays_s(stack, "brief") <= 3600, what="the bound of the catalogue")
    plain = [stack.chat("brief").status_code for _ in range(6)]

    assert long.status_code == 200
    assert plain == [200] * 6
    eventually(lambda: 0 < stays_s(stack, "brief") <= 30, what="the function's own time")


@pytest.mark.parametrize(
    ("headers", "body", "field"),
    [({}, {"keep_alive": "soon"}, "keep_alive"), ({"x-cortex-keep-alive": "1 day"}, {}, "x-cortex-keep-alive")],
)
def test_what_is_no_duration_is_refused_with_its_name(
    stack: Stack, headers: dict[str, str], body: dict[str, str], field: str
) -> None:
    question = {"model": "brief", "messages": [{"role": "user", "content": "Hello!"}]}

    answer = stack.http.post("/v1/chat/completions", json=question | body, headers=headers)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
