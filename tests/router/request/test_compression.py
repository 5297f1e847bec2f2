"""Bodies in gzip and zstd: unpacked in bounded steps, or refused with the reason."""

import gzip
import os
from collections.abc import Callable

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from cortex.router.dialects.core.errors import BadRequest
from cortex.router.request.compression import MOST_MEMBERS, STEP, Encoding, Unpacker, encoding_of
from cortex.router.request.intake import Intake
from tests.router.dialects.examples import examples
from tests.support.incoming import an_incoming

PACK: dict[Encoding, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd.compress}
ENCODINGS = pytest.mark.parametrize("encoding", list(PACK))
MIB = 1024 * 1024


def unpacked(encoding: Encoding, data: bytes) -> list[bytes]:
    unpacker = Unpacker(encoding, data)
    return list(iter(unpacker.step, b""))


@ENCODINGS
@examples(30)
@given(parts=st.lists(st.binary(max_size=40).map(lambda b: b * 9000), min_size=1, max_size=3))
def test_a_body_of_any_parts_is_unpacked_in_bounded_steps(encoding: Encoding, parts: list[bytes]) -> None:
    pieces = unpacked(encoding, b"".join(map(PACK[encoding], parts)))

    assert b"".join(pieces) == b"".join(parts)
    assert all(len(piece) <= STEP for piece in pieces)


@ENCODINGS
def test_one_step_of_a_bomb_is_bounded(encoding: Encoding) -> None:
    assert len(Unpacker(encoding, PACK[encoding](bytes(50 * MIB))).step()) <= STEP


@ENCODINGS
@pytest.mark.parametrize("size", [0, 1, 700_000])
def test_a_body_that_is_cut_is_refused(encoding: Encoding, size: int) -> None:
    with pytest.raises(BadRequest, match="ends too early"):
        unpacked(encoding, PACK[encoding](os.urandom(size))[:-3])


@ENCODINGS
@pytest.mark.parametrize("data", [b'{"model":"m"}', b"\x1f\x8b\x08junkjunkjunk"])
def test_a_body_that_is_not_compressed_is_refused(encoding: Encoding, data: bytes) -> None:
    with pytest.raises(BadRequest, match=encoding):
        unpacked(encoding, data)


@ENCODINGS
def test_a_body_of_too_many_parts_is_refused(encoding: Encoding) -> None:
    with pytest.raises(BadRequest, match="more than"):
        unpacked(encoding, PACK[encoding](b"") * (MOST_MEMBERS + 1))


def test_a_zstd_window_that_takes_more_memory_than_the_standard_allows_is_refused() -> None:
    parameter = zstd.CompressionParameter
    large = zstd.compress(os.urandom(20 * MIB), options={parameter.window_log: 25, parameter.checksum_flag: 0})

    with pytest.raises(BadRequest, match="not valid zstd"):
        unpacked("zstd", large)


@pytest.mark.parametrize(
    ("header", "expected"), [("", None), ("identity", None), ("GZIP", "gzip"), ("x-gzip", "gzip"), (" zstd ", "zstd")]
)
def test_the_known_encodings_have_their_names(header: str, expected: str | None) -> None:
    assert encoding_of(header) == expected


@pytest.mark.parametrize("header", ["br", "gzip, gzip", "deflate"])
def test_another_encoding_is_refused_with_those_that_are_taken(header: str) -> None:
    with pytest.raises(BadRequest, match="send gzip, zstd or no") as refused:
        encoding_of(header)

    assert refused.value.fault().status("chat") == 415


# As requests come in


async def read(intake: Intake, body: bytes, encoding: str) -> bytes:
    async def cover(size: int) -> None:
        assert size > 0

    return (await intake.body(an_incoming(body, (b"content-encoding", encoding.encode())), cover)).bytes


@ENCODINGS
@pytest.mark.parametrize("size", [10, 3 * MIB])
async def test_a_compressed_request_is_read_as_the_plain_one(encoding: Encoding, size: int) -> None:
    plain = b'{"model":"m","input":"%b"}' % (b"x" * size)
    intake = Intake(8 * MIB)

    assert await read(intake, PACK[encoding](plain), encoding) == plain

    intake.close()


@ENCODINGS
async def test_a_bomb_is_refused_with_the_limit_and_leaves_nothing_counted(encoding: Encoding) -> None:
    intake = Intake(MIB)
    bomb = PACK[encoding](bytes(30 * MIB))

    for _ in range(20):
        with pytest.raises(BadRequest, match="unpacks to more than 1 MiB") as refused:
            await read(intake, bomb, encoding)
        assert refused.value.fault().status("chat") == 413

    intake.close()
