"""Gathers the credentials that a pool's Models refer to into one Secret that its pods mount. Pure; a part of `plan`.

The key `token` of the Secret that the Model `coder` refers to becomes the key `coder.token`: a Model's name has no dot,
so no two Models can meet.
"""

import hashlib
import hmac
from collections.abc import Iterable

from pydantic_core import to_json

from tandem_operator.observe import Member, Pool


def gathered(pool: Pool, members: Iterable[Member]) -> dict[str, str]:
    """The Secret's data, values in base64 as Kubernetes has them; empty when no Model refers to a usable Secret."""
    found: dict[str, str] = {}
    for member in members:
        reference = member.spec.secret_ref if member.spec is not None else None
        secret = pool.secrets.get(reference.name) if reference is not None else None
        for key, value in sorted((secret or {}).get("data", {}).items()):
            found[f"{member.key.name}.{key}"] = value
    return found


def digest(data: dict[str, str], master: bytes) -> str:
    """Names a state of the credentials and tells nothing of them: it is keyed against guessing. "" for none."""
    return hmac.new(master, to_json(data), hashlib.sha256).hexdigest()[:16] if data else ""
