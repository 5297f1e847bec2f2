"""Forms on their way to a worker: what a router holds of them, and when they may be sent again."""

import io
import tempfile
from pathlib import Path
from typing import Any

import pytest

from cortex.functions.passing import passing
from cortex.router.dialects.core.errors import BadRequest
from cortex.router.errors import KeyHoldsTooMuch, NoDisk, TooManyAnswers
from cortex.router.request.holdings import Holdings
from cortex.router.request.incoming import ClientLeft
from cortex.router.request.upload import MEMORY, SMALL, Held, Upload, Uploads
from tests.support.incoming import ReadingClient, an_incoming

MIB = 1024 * 1024
PASSING = passing("openai", "transcriptions")
TYPE = (b"content-type", b"multipart/form-data; boundary=b")
MODEL = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nmine\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


def uploads(most: int = 64 * MIB) -> Uploads:
    return Uploads(most, Holdings(64 * MIB, 64 * MIB))


def a_form(size: int, *, file_first: bool = False) -> bytes:
    file = FILE + b"x" * size + b"\r\n"
    return (file + MODEL if file_first else MODEL + file) + b"--b--\r\n"


async def begun(body: bytes, pieces: int = 1, most: int = 64 * MIB, **more: bool) -> tuple[Uploads, Upload]:
    shared = uploads(most)
    return shared, await shared.begin(an_incoming(body, TYPE, pieces=pieces, **more), "transcriptions")


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def sent(form: Upload) -> bytes:
    return b"".join([piece async for piece in form.pieces("worker", PASSING)])


async def test_a_form_is_read_no_further_than_its_model() -> None:
    _, form = await begun(a_form(10 * MIB), pieces=100)

    assert form._held.size < 2 * 10 * MIB // 100
    assert form.may_be_sent_again
    assert form.to("worker", PASSING).size is None


async def test_a_form_that_is_read_on_is_not_sent_again() -> None:
    _, form = await begun(a_form(MIB), pieces=10)

    assert (await sent(form)).count(b"x") == MIB
    assert not form.may_be_sent_again


async def test_a_small_form_is_held_whole_and_may_be_sent_again_with_its_length() -> None:
    _, form = await begun(a_form(SMALL // 2), pieces=10)

    first, second = await sent(form), await sent(form)

    assert first == second
    assert form.to("worker", PASSING).size == len(first)
    assert form.may_be_sent_again


async def test_a_file_before_the_model_is_held_on_the_disk_and_may_be_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shared, form = await begun(a_form(5 * MIB, file_first=True), pieces=50)

    first, second = await sent(form), await sent(form)

    assert first == second
    assert b"x" * (5 * MIB) in first
    assert form._held._in_memory <= MEMORY
    assert shared.disk._held > 3 * MIB
    assert names_in(tmp_path) == []
    await form.release()
    assert (shared.disk._held, shared.memory._held) == (0, 0)


async def test_a_key_that_holds_its_limit_on_the_disk_is_refused() -> None:
    shared = Uploads(8 * MIB, Holdings(64 * MIB, 64 * MIB))
    body = a_form(7 * MIB, file_first=True)
    held = [await shared.begin(an_incoming(body, TYPE, pieces=20), "transcriptions") for _ in range(2)]

    with pytest.raises(KeyHoldsTooMuch, match="on the disk"):
        await shared.begin(an_incoming(body, TYPE, pieces=20), "transcriptions")

    await held[0].release()
    await shared.begin(an_incoming(body, TYPE, pieces=20), "transcriptions")


async def test_a_disk_that_cannot_be_written_says_to_send_the_model_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))

    with pytest.raises(NoDisk, match="send `model` first"):
        await begun(a_form(2 * MIB, file_first=True), pieces=4)


@pytest.mark.parametrize("length", [True, False], ids=["declared", "read"])
async def test_a_form_that_is_too_large_is_refused_with_both_numbers(length: bool) -> None:
    with pytest.raises(BadRequest, match=r"3\.\d MiB.* is 2") as refused:
        _, form = await begun(a_form(3 * MIB), pieces=2, most=2 * MIB, length=length)
        await sent(form)

    assert refused.value.fault().status("transcriptions") == 413


async def test_a_client_that_leaves_ends_the_worker_side_too() -> None:
    _, form = await begun(a_form(MIB), pieces=10, leaves=True)

    with pytest.raises(ClientLeft):
        await sent(form)


async def test_a_client_is_held_back_after_every_piece_until_the_form_ends() -> None:
    class Client(ReadingClient):
        held_back = 0

        def hold_back(self) -> None:
            self.held_back += 1

    _, form = await begun(a_form(MIB), pieces=10)
    client = Client()
    form.hold_back(client)

    await sent(form)

    assert client.held_back == 9


async def test_no_more_is_read_than_the_worker_takes() -> None:
    """The bytes that the router holds are those read from the client and not yet taken: one piece."""
    read, step = 0, 64 * 1024

    async def receive() -> object:
        nonlocal read
        piece = MODEL + FILE if not read else b"x" * step
        read += len(piece)
        return {"type": "http.request", "body": piece, "more_body": True}

    request = an_incoming(b"", TYPE, length=False)
    request._receive = receive  # type: ignore[assignment]
    form = await uploads(4096 * MIB).begin(request, "transcriptions")
    taken, most_held = 0, 0

    async for piece in form.pieces("worker", PASSING):
        taken += len(piece)
        most_held = max(most_held, read - taken)
        if taken > 200 * MIB:
            break

    assert most_held < 2 * step


async def test_held_bytes_come_back_in_order() -> None:
    held = Held(Holdings(64 * MIB, 64 * MIB), Holdings(64 * MIB, 64 * MIB), "k")
    pieces = [bytes([number]) * (MEMORY // 3) for number in range(9)]
    for piece in pieces:
        await held.add(piece)

    assert b"".join([piece async for piece in held.pieces()]) == b"".join(pieces)
    await held.release()


async def test_a_compressed_form_is_refused() -> None:
    with pytest.raises(BadRequest, match="uncompressed"):
        await uploads().begin(an_incoming(b"x", TYPE, (b"content-encoding", b"gzip")), "transcriptions")


async def test_a_file_that_takes_a_part_of_each_write_holds_all_bytes() -> None:
    class Short(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(memoryview(data)[:1000])

    held = Held(Holdings(64 * MIB, 64 * MIB), Holdings(64 * MIB, 64 * MIB), "key")
    held._file = Short()
    data = bytes(range(256)) * 64

    await held.add(data)

    assert b"".join([piece async for piece in held.pieces()]) == data


LATE_N = b'--b\r\nContent-Disposition: form-data; name="n"\r\n\r\n5\r\n--b--\r\n'


async def an_edit(pieces: int) -> Upload:
    """Return a form whose number of answers comes after its file."""
    prompt = MODEL.replace(b"model", b"prompt")
    body = MODEL + prompt + FILE.replace(b'"file"', b'"image"') + b"x" * MIB + b"\r\n" + LATE_N
    return await uploads().begin(an_incoming(body, TYPE, pieces=pieces), "image_edits")


async def test_answers_that_a_form_requests_after_its_file_are_covered() -> None:
    covered = list[int]()

    async def cover(answers: int) -> None:
        covered.append(answers)

    form = await an_edit(pieces=10)
    assert form.form.answers == 1
    form.cover = cover

    await sent(form)

    assert covered == [5]


async def test_a_form_that_requests_too_much_after_its_file_is_refused() -> None:
    async def refuse(answers: int) -> None:
        raise TooManyAnswers(answers, 2)

    form = await an_edit(pieces=10)
    form.cover = refuse

    with pytest.raises(TooManyAnswers):
        await sent(form)
