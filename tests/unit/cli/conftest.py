"""Fixtures of the command line's tests; what they are made of is in `cli_fake` and `cli_terminal`."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cli_fake import FakeServer


@pytest.fixture
def fake():
    """A server of both APIs on loopback that answers what a test tells it to."""
    with FakeServer() as server:
        yield server


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    """No setting of the person who runs the tests takes part."""
    for name in ("TANDEM_URL", "TANDEM_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def tandem() -> list[str]:
    """The command, as a process is started with it."""
    return [sys.executable, "-m", "tandem_cli"]
