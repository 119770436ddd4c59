"""Keys of a round: agreement (X25519), derivation (HKDF), sealed shares (ChaCha20-Poly1305), signatures (Ed25519).

Every derived key is bound to the session, by its digest, to its purpose and to the clients it is between, so that
nothing made for one round, purpose or pair is of use in another. Sealed shares are bound to everybody's keys too.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from hashlib import sha256

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedrot.errors import SecureAggregationError

Entropy = Callable[[int], bytes]
"""Draws that many random bytes, as `os.urandom`."""
Identities = Mapping[int, bytes]
"""The long-term Ed25519 public keys, 32 bytes each, by client."""

KEY_BYTES = 32
SIGNATURE_BYTES = 64
NONCE_BYTES = 12
TAG_BYTES = 16
_DOMAIN = b"fedrot/secagg/2/"


def public_key(private: bytes) -> bytes:
    """The X25519 public key of 32 private bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes, session: bytes, purpose: str, first: int, second: int) -> bytes:
    """A 32-byte key that the holders of two X25519 keys share, for one purpose between clients `first` and `second`.

    Raises:
        SecureAggregationError: a public key of small order, with which anybody would know the result.
    """
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError as error:
        raise SecureAggregationError(
            f"the public key between clients {first} and {second} is unusable: {error}"
        ) from error
    return derive_key(shared, session, purpose, first, second)


def derive_key(secret: bytes, session: bytes, purpose: str, first: int, second: int) -> bytes:
    """HKDF-SHA256 of `secret`, salted with the session's digest, for one purpose and pair of clients."""
    info = _DOMAIN + purpose.encode() + b"/" + _pair(first, second)
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=session, info=info).derive(secret)


def commit(seed: bytes, session: bytes, client: int) -> bytes:
    """A commitment to 32 uniform bytes: hides them, and shows whether they were restored rightly."""
    return sha256(_DOMAIN + b"commitment/" + session + _pair(client, client) + seed).digest()


def same(left: bytes, right: bytes) -> bool:
    """Whether two byte strings are equal, in constant time."""
    return hmac.compare_digest(left, right)


def seal(key: bytes, plain: bytes, context: bytes, sender: int, recipient: int, entropy: Entropy) -> bytes:
    """`plain` encrypted and authenticated, with context, sender and recipient as associated data.

    Args:
        key: 32 bytes.
        plain: any bytes.
        context: 64 bytes, the digests of session and roster.
        sender: client.
        recipient: client.
        entropy: draws the nonce.
    """
    nonce = entropy(NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, context + _pair(sender, recipient))


def unseal(key: bytes, box: bytes, context: bytes, sender: int, recipient: int) -> bytes:
    """The inverse of `seal`.

    Raises:
        SecureAggregationError: altered, or made for another session, roster, sender, recipient or key.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(
            box[:NONCE_BYTES], box[NONCE_BYTES:], context + _pair(sender, recipient)
        )
    except (InvalidTag, ValueError) as error:
        raise SecureAggregationError(
            f"shares of client {sender} for client {recipient} do not decrypt: altered on the way, of another "
            "round, or made under other keys; nothing was sent"
        ) from error


def new_identity(entropy: Entropy) -> bytes:
    """A long-term Ed25519 private key, 32 bytes."""
    return entropy(KEY_BYTES)


def identity_of(private: bytes) -> bytes:
    """The Ed25519 public key of 32 private bytes, to be given to the other clients by a way the server is not on."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def sign(private: bytes, purpose: str, session: bytes, content: bytes) -> bytes:
    """An Ed25519 signature over purpose, session and content."""
    return Ed25519PrivateKey.from_private_bytes(private).sign(_signed(purpose, session, content))


def verify(
    identities: Identities, client: int, signature: bytes, purpose: str, session: bytes, content: bytes
) -> None:
    """Accept a signature of `client`.

    Raises:
        SecureAggregationError: no identity is known for the client, or the signature is not its.
    """
    if client not in identities:
        raise SecureAggregationError(
            f"client {client} has no known identity: expected its Ed25519 public key"
        )
    try:
        public = Ed25519PublicKey.from_public_bytes(identities[client])
        public.verify(signature, _signed(purpose, session, content))
    except (InvalidSignature, ValueError) as error:
        raise SecureAggregationError(
            f"the signature of client {client} on its {purpose} is wrong: somebody may be impersonating it, or it was "
            "told something else"
        ) from error


def _signed(purpose: str, session: bytes, content: bytes) -> bytes:
    return _DOMAIN + b"signature/" + purpose.encode() + b"/" + session + content


def _pair(first: int, second: int) -> bytes:
    return first.to_bytes(4, "little") + second.to_bytes(4, "little")
