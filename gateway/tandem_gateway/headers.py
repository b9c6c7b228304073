"""Which headers pass: of a client's request to the pod, and of the pod's answer to the client.

On the path of every proxied request. Credentials of clients end here; the pod gets the pool key in their place.
"""

from collections.abc import Iterable, Mapping

from multidict import CIMultiDict

from tandem_api.names import CALLER_HEADER, LOAD_HEADER

RawHeaders = Iterable[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
CREDENTIALS = frozenset({"authorization", "x-api-key", "api-key", "cookie"})
OWN_PREFIX = "x-tandem-"
_NOT_SENT_ON = HOP_BY_HOP | CREDENTIALS | {"host", "content-length", "expect"}
_NOT_ANSWERED = HOP_BY_HOP | {LOAD_HEADER, "server", "date"}


def to_pod(headers: RawHeaders, key: str, caller: str) -> CIMultiDict[str]:
    """What the pod gets: the client's headers without credentials, hops and `x-tandem-*`, the pool key, and who asks.

    `caller` tells keep-alives apart: one caller's wish must not unload what another uses.
    """
    decoded = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers]
    named = _named_by_connection(value for name, value in decoded if name == "connection")
    sent = CIMultiDict(
        (name, value)
        for name, value in decoded
        if name not in _NOT_SENT_ON and name not in named and not name.startswith(OWN_PREFIX)
    )
    sent["authorization"] = f"Bearer {key}"
    sent[CALLER_HEADER] = caller
    return sent


def to_client(raw: RawHeaders, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """What the client gets of the pod's headers; the load, which is for the gateway alone, is left out."""
    named = _named_by_connection([headers.get("connection", "")])
    return [
        (name.lower(), value)
        for name, value in raw
        if (lower := name.decode("latin-1").lower()) not in _NOT_ANSWERED and lower not in named
    ]


def _named_by_connection(values: Iterable[str]) -> frozenset[str]:
    return frozenset(token.strip().lower() for value in values for token in value.split(","))
