"""What an API key stores, nobody else can read or replace."""

import pytest

from cortex.platform.response_cipher import ResponseCipher, Unreadable

SECRET, OTHER = "sk-cortex-" + "a" * 43, "sk-cortex-" + "b" * 43


def test_a_key_reads_what_it_encrypted_at_any_router() -> None:
    sealed = ResponseCipher(SECRET).encrypt("resp_1", b"the harbour")

    assert ResponseCipher(SECRET).decrypt("resp_1", sealed) == b"the harbour"
    assert b"harbour" not in sealed


def test_two_encryptions_of_a_value_differ() -> None:
    cipher = ResponseCipher(SECRET)

    assert cipher.encrypt("resp_1", b"x") != cipher.encrypt("resp_1", b"x")


@pytest.mark.parametrize(
    ("secret", "name", "change"),
    [
        (OTHER, "resp_1", lambda sealed: sealed),
        (SECRET, "resp_2", lambda sealed: sealed),
        (SECRET, "resp_1", lambda sealed: sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (SECRET, "resp_1", lambda sealed: sealed[:20]),
        (SECRET, "resp_1", lambda sealed: b""),
    ],
    ids=["another key", "another name", "changed", "cut", "empty"],
)
def test_a_value_of_another_key_or_name_is_unreadable(secret: str, name: str, change: object) -> None:
    sealed = ResponseCipher(SECRET).encrypt("resp_1", b"the harbour")

    with pytest.raises(Unreadable):
        ResponseCipher(secret).decrypt(name, change(sealed))  # type: ignore[operator]


def test_an_owner_is_a_digest_that_differs_by_key() -> None:
    owner = ResponseCipher(SECRET).owner

    assert owner == ResponseCipher(SECRET).owner != ResponseCipher(OTHER).owner
    assert len(owner) == 32 and SECRET[10:20] not in owner
