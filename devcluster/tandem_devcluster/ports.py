"""Free TCP ports on the loopback for a control plane."""

import random
import socket
from collections.abc import Sequence

# Below Linux' ephemeral ports: an outgoing connection of another program cannot take one in between.
RANGE = (20_000, 32_000)
_ATTEMPTS = 200


def choose(names: Sequence[str], address: str = "127.0.0.1") -> dict[str, int]:
    """A different free port for each name. Raises OSError when 200 random ones were all taken."""
    chosen: dict[str, int] = {}
    sockets = []
    try:
        for port in random.sample(range(*RANGE), _ATTEMPTS):
            if len(chosen) == len(names):
                break
            candidate = socket.socket()
            sockets.append(candidate)
            try:
                candidate.bind((address, port))
            except OSError:
                continue
            chosen[names[len(chosen)]] = port
    finally:
        for each in sockets:
            each.close()
    if len(chosen) < len(names):
        raise OSError(f"no {len(names)} free TCP ports between {RANGE[0]} and {RANGE[1]} on {address}")
    return chosen
