"""Sizes, times and addresses as people read them; shared by the screens of `serve`, `run` and `ps`.

Pure. Sizes are decimal, as `ollama ps` and `kubectl get models` print them.
"""

from datetime import UTC, datetime
from urllib.parse import urlsplit

_FAR_YEAR = 2200
"""Expiry times after this mean never: Ollama's API has no other way to say so."""


def size_text(number: float) -> str:
    """Bytes: `417 MB`, `1.3 GB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor * 0.9995:
            value = number / factor
            return f"{value:.1f} {unit}" if value < 9.95 and unit != "kB" else f"{value:.0f} {unit}"
    return f"{number:.0f} B"


def until_text(expires_at: str | None, now: datetime) -> str:
    """When an idle model is unloaded, as `ollama ps` says it: `Forever`, `4 minutes from now`."""
    if not expires_at:
        return "Forever"
    try:
        expires = datetime.fromisoformat(expires_at)
    except ValueError:
        return expires_at
    if expires.tzinfo is None:
        expires = expires.replace(tzinfo=UTC)
    if expires.year >= _FAR_YEAR:
        return "Forever"
    seconds = (expires - now).total_seconds()
    return "about now" if seconds < 1 else f"{span_text(seconds)} from now"


def span_text(seconds: float) -> str:
    """`45 seconds`, `4 minutes`, `3 hours`, `2 days`."""
    for unit, factor in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= factor:
            count = int(seconds // factor)
            return f"{count} {unit}{'s' if count != 1 else ''}"
    count = int(seconds)
    return f"{count} second{'s' if count != 1 else ''}"


def processor_text(size: int, on_gpu: int) -> str:
    """Where a model of `size` bytes lies: `100% CPU`, `100% GPU`, `25%/75% CPU/GPU`."""
    if on_gpu <= 0:
        return "100% CPU"
    if on_gpu >= size:
        return "100% GPU"
    share = round(100 * on_gpu / size)
    return f"{100 - share}%/{share}% CPU/GPU"


def server_url(text: str) -> str:
    """An address as typed, as a URL: `host:port` gets `http://`, a `/v1` is dropped. Raises ValueError."""
    text = text.strip()
    url = (text if "://" in text else f"http://{text}").rstrip("/").removesuffix("/v1").removesuffix("/api")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"'{text}' is no address; write http://host:port")
    if parts.port == 0:
        raise ValueError(f"'{text}' has port 0, at which nothing can be called")
    return url
