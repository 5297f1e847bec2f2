"""Sends requests and measures them: latency of each, and of streams that are held or wait together."""

import asyncio
import time
from collections.abc import Callable

import aiohttp
from msgspec import Struct

from tests.bench.scenarios import Scenario


class Timings(Struct):
    """Seconds of each request, and of all together."""

    each: list[float]
    whole_s: float

    def percentile_ms(self, quantile: float) -> float:
        """Return a percentile in milliseconds."""
        ordered = sorted(self.each)
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] * 1000


def headers(key: str) -> dict[str, str]:
    """Return the headers of a request with a key."""
    return {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}


def session(connections: int) -> aiohttp.ClientSession:
    """Return a client that holds so many connections."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections), timeout=aiohttp.ClientTimeout(total=300)
    )


async def send(url: str, scenario: Scenario, key: str, number: int, *, checks: bool = True) -> Timings:
    """Send so many requests and read every answer to its end. Raises AssertionError for another status, if it checks
    them: a limit is not reached at once."""
    left, each = iter(range(number)), list[float]()

    async def one(http: aiohttp.ClientSession) -> None:
        for _ in left:
            began = time.perf_counter()
            async with http.post(url + scenario.path, data=scenario.body, headers=headers(key)) as answer:
                text = await answer.read()
                assert not checks or answer.status == scenario.status, (answer.status, text[:300])
            each.append(time.perf_counter() - began)

    began = time.perf_counter()
    async with session(scenario.connections) as http:
        await asyncio.gather(*(one(http) for _ in range(scenario.connections)))
    return Timings(each, time.perf_counter() - began)


async def send_paced(url: str, scenario: Scenario, key: str, users: int, rate: float, number: int) -> Timings:
    """Send so many requests at a rate (requests per second in all), by users of whom each sends one at a time."""
    left, each = iter(range(number)), list[float]()
    began = time.perf_counter()

    async def user(http: aiohttp.ClientSession, first: float) -> None:
        due = began + first
        for _ in left:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            sent = time.perf_counter()
            async with http.post(url + scenario.path, data=scenario.body, headers=headers(key)) as answer:
                text = await answer.read()
                assert answer.status == scenario.status, (answer.status, text[:300])
            each.append(time.perf_counter() - sent)
            due += users / rate

    async with session(users) as http:
        await asyncio.gather(*(user(http, at / rate) for at in range(users)))
    return Timings(each, time.perf_counter() - began)


async def hold(url: str, body: bytes, key: str, number: int, measure: Callable[[], float]) -> float:
    """Open so many streams, read the first piece of each, and return what `measure` finds while all are open."""
    async with session(number) as http:
        answers: list[aiohttp.ClientResponse] = []

        async def one() -> None:
            answer = await http.post(f"{url}/v1/chat/completions", data=body, headers=headers(key))
            assert answer.status == 200, await answer.text()
            await answer.content.readany()
            answers.append(answer)

        for at in range(0, number, 100):
            await asyncio.gather(*(one() for _ in range(min(100, number - at))))
        result = measure()
        for answer in answers:
            answer.close()
    return result


async def wait_together(
    url: str, body: bytes, key: str, number: int, begin: Callable[[], None], waiting: Callable[[], int]
) -> Timings:
    """Send so many requests for what is not ready, `begin` it when all wait, and time each from then."""
    each: list[float] = []
    began = 0.0

    async def one(http: aiohttp.ClientSession) -> None:
        async with http.post(f"{url}/v1/chat/completions", data=body, headers=headers(key)) as answer:
            text = await answer.read()
            assert text.endswith(b"data: [DONE]\n\n"), text[-300:]
        each.append(time.perf_counter() - began)

    async with session(number) as http:
        tasks = [asyncio.create_task(one(http)) for _ in range(number)]
        async with asyncio.timeout(60):
            while await asyncio.to_thread(waiting) < number:
                for task in tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.1)
        began = time.perf_counter()
        await asyncio.to_thread(begin)
        await asyncio.gather(*tasks)
    return Timings(each, time.perf_counter() - began)
