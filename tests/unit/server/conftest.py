"""Fixtures of the serving pod's tests; what they are made of is in `server_site`."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from server_site import FakeModel, byte_level_tokenizer, fake_settings, served, shared


@pytest.fixture(scope="session")
def tokenizer():
    """One for all tests."""
    return byte_level_tokenizer()


@pytest.fixture
def make_model(tmp_path, tokenizer) -> Callable[..., FakeModel]:
    """Makes checkpoint folders."""
    return lambda name="checkpoint", **fields: FakeModel.make(tmp_path / name, tokenizer, **fields)


@pytest.fixture
def model(make_model) -> FakeModel:
    """One model of four slots."""
    return make_model()


@pytest.fixture
async def serve(tmp_path):
    """Starts pods that end with the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(*entries, load=True, **settings):
            return await stack.enter_async_context(served(fake_settings(tmp_path, **settings), entries, load))

        yield start


@pytest.fixture(scope="session")
def site(tmp_path_factory, tokenizer):
    """A pod that many tests share: `fake` chats, `plain` has no template, `vectors` embeds."""
    folder = tmp_path_factory.mktemp("shared")
    entries = [
        FakeModel.make(folder / "chat", tokenizer, step_seconds=0.0).entry(
            aliases=["other:name"], defaults={"maxTokens": 200}
        ),
        FakeModel.make(folder / "plain", tokenizer, template=None, step_seconds=0.0).entry("plain"),
        FakeModel.make(folder / "vectors", tokenizer, task="Embed", context=16).entry("vectors"),
    ]
    settings = fake_settings(folder, max_body_bytes=100_000)
    with shared(settings, entries, tokenizer) as started:
        yield started
