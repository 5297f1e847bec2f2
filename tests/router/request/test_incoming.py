"""A request's id and body, however the body arrives."""

import pytest

from cortex.router.dialects.core.errors import BadRequest
from cortex.router.request.incoming import ClientLeft, request_id
from cortex.router.request.intake import SMALL, Intake
from tests.support.incoming import an_incoming

MIB = 1 << 20


async def ignore(size: int) -> None:
    """Refuse nothing."""


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("size", [0, 1, 1000, SMALL + 1])
@pytest.mark.parametrize("pieces", [1, 2, 7])
async def test_a_body_is_read_whole_however_it_is_cut(size: int, pieces: int, length: bool) -> None:
    body = bytes(range(1, 128)) * (size // 127) + b"x" * (size % 127)

    read = await Intake(MIB).body(an_incoming(body, pieces=pieces, length=length), ignore)

    assert read.bytes == body


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("size", [100, SMALL + 1])
async def test_a_client_that_leaves_within_its_body_ends_the_reading_and_nothing_stays_counted(
    size: int, length: bool
) -> None:
    intake = Intake(2 * SMALL)

    with pytest.raises(ClientLeft):
        await intake.body(an_incoming(b"x" * size, pieces=3, leaves=True, length=length), ignore)

    intake.memory.count("local", 8 * SMALL)  # all that one key may hold


@pytest.mark.parametrize("length", [True, False])
async def test_a_body_above_the_limit_is_refused_before_it_is_held(length: bool) -> None:
    intake = Intake(1000)

    with pytest.raises(BadRequest, match=r"exceeds \[gateway\] max_body_mb") as refused:
        await intake.body(an_incoming(b"x" * 1001, pieces=2, length=length), ignore)

    assert refused.value.fault().status("chat") == 413


@pytest.mark.parametrize("sent", [b"abc", b"a.b_c:d-1", b"x" * 128])
def test_a_valid_id_of_the_client_is_the_requests(sent: bytes) -> None:
    assert request_id(sent) == sent.decode()


@pytest.mark.parametrize("sent", [None, b"", b"a b", b"\xff", b"x" * 129, b"a\n"])
def test_a_request_without_a_valid_id_gets_one_of_its_own(sent: bytes | None) -> None:
    ids = {request_id(sent) for _ in range(1000)}

    assert len(ids) == 1000
    assert all(len(id) == 28 and id.startswith("req_") for id in ids)
