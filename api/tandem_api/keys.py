"""The pool key: what a serving pod asks of everyone who calls it (`Authorization: Bearer <key>`).

Derived from the installation's master secret and the pool's UID, so that the operator (which writes it into a Secret
that the pod mounts) and the gateway (which holds the master) agree without the gateway reading any Secret.
"""

import hashlib
import hmac


def pool_key(master: bytes, pool_uid: str) -> str:
    """Key of the pool with `pool_uid`, 64 hex digits. Raises ValueError for a master of under 16 bytes."""
    if len(master) < 16:
        raise ValueError(f"the install master secret has {len(master)} bytes; it needs at least 16")
    return hmac.new(master, f"tandem.dev/pool-key/{pool_uid}".encode(), hashlib.sha256).hexdigest()


def bearer_matches(header: str | None, key: str) -> bool:
    """Whether an Authorization header carries `key`; compared in constant time."""
    scheme, _, token = (header or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), key.encode())
