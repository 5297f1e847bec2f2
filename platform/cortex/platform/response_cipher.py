"""Encrypt the data of one API key, under a key that is derived from its secret and stored nowhere.

HKDF-SHA256 (RFC 5869) derives from the secret, 32 random bytes, a key for AES-256-GCM and an owner: a name in Redis
that reveals nothing about the secret. Without the API key a stored value can be neither read nor replaced by another
one: each value is authenticated together with its name.
"""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_KEY_BYTES, _OWNER_BYTES, _NONCE_BYTES = 32, 16, 12
_PURPOSE = b"cortex stored responses 1"


class Unreadable(Exception):
    """A value is damaged, or was stored under another name or key."""


class ResponseCipher:
    """Encrypts and decrypts the values of one API key. `owner` names them in Redis."""

    def __init__(self, secret: str) -> None:
        derived = HKDF(SHA256(), _KEY_BYTES + _OWNER_BYTES, salt=None, info=_PURPOSE).derive(secret.encode())
        self._aead = AESGCM(derived[:_KEY_BYTES])
        self.owner = derived[_KEY_BYTES:].hex()

    def encrypt(self, name: str, value: bytes) -> bytes:
        """Return a value encrypted for a name."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, value, name.encode())

    def decrypt(self, name: str, sealed: bytes) -> bytes:
        """Return the value of a name. Raises Unreadable."""
        try:
            return self._aead.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], name.encode())
        except (InvalidTag, ValueError):
            raise Unreadable from None
