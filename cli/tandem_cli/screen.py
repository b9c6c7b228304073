"""What a person sees while `tandem serve` loads, and the first screen when it serves.

Runs beside the pod on its event loop, and only reads from it. Without a terminal there are no bars: the pod's log
lines tell the same.
"""

import asyncio
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tandem_cli.address import DEFAULT_URL
from tandem_cli.loading import SETTLED, LoadBars
from tandem_cli.words import size_text

if TYPE_CHECKING:
    from tandem_server.pod import Pod
    from tandem_server.residency.host import ModelHost

LOOK_SECONDS = 0.1
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - only compared with


async def _until(true: Callable[[], bool]) -> None:
    """Looks now and then: what is shown need not be told by those it is about."""
    while not true():  # noqa: ASYNC110 - the pod has no event for a bystander, and should not
        await asyncio.sleep(LOOK_SECONDS)


class Screen:
    """Shows one pod on the terminal."""

    def __init__(self, address: str, console: Console) -> None:
        self._address = address
        self._console = console
        self._pod: Pod | None = None

    @property
    def ending(self) -> bool:
        """Whether the pod shuts down."""
        return self._pod is not None and self._pod.draining

    async def show(self, pod: "Pod", port: int) -> None:
        """Follows the load of every model, then prints the first screen."""
        from tandem_server.pod import model_report

        self._pod = pod
        await _until(lambda: bool(pod.manager.hosts))
        with LoadBars(self._console) as bars:
            while not self._settled(pod):
                bars.show([model_report(host) for host in pod.manager.hosts.values()])
                await asyncio.sleep(LOOK_SECONDS)
        text = first_screen(url_of(self._address, port), list(pod.manager.hosts.values()), program())
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def _settled(self, pod: "Pod") -> bool:
        return all(host.state in SETTLED for host in pod.manager.hosts.values())


def url_of(address: str, port: int) -> str:
    """How clients on this machine call what listens there."""
    host = _ANYWHERE.get(address, address)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def program() -> str:
    """How this command is called here: `tandem` where the search path finds it, else as it was called."""
    called = Path(sys.argv[0])
    found = shutil.which("tandem")
    if called.name != "tandem" or (found and Path(found).resolve() == called.resolve()):
        return "tandem"
    return str(called)


def first_screen(url: str, hosts: "list[ModelHost]", tandem: str = "tandem") -> str:
    """The lines that tell what is served where, what was given, and commands to try."""
    lines = [
        "",
        f"Tandem serves at {url}" if any(host.loaded for host in hosts) else f"No model is loaded at {url}",
        "",
    ]
    width = max(len(host.entry.name) for host in hosts)
    for host in hosts:
        lines += _model_lines(host, width)
    example = next((host for host in hosts if host.loaded is not None), None)
    if example is not None and example.loaded is not None:
        lines += ["", "Call it", ""]
        lines += [f"  {line}" for line in _examples(url, example.entry.name, example.loaded.task, tandem)]
    lines += ["", "Ctrl-C ends it.", ""]
    return "\n".join(lines)


def _model_lines(host: "ModelHost", width: int) -> list[str]:
    loaded, name = host.loaded, host.entry.name
    if loaded is None:
        return [
            f"  {name:{width}}  cannot be loaded: {host.last_error}",
            f"  {'':{width}}  It is tried again by itself.",
        ]
    kind = "embeddings" if loaded.task == "Embed" else "chat"
    size = size_text(loaded.weight_bytes + loaded.cache_bytes + loaded.overhead_bytes)
    lines = [
        f"  {name:{width}}  {kind}, {loaded.slots} requests at once with {loaded.context} tokens of context each",
        f"  {'':{width}}  {size}, {loaded.dtype} on {loaded.device}, loaded in {host.load_seconds:.1f} s",
    ]
    if loaded.context_reason:
        lines.append(f"  {'':{width}}  less context than asked for: {loaded.context_reason}")
    if host.entry.aliases:
        lines.append(f"  {'':{width}}  also called {', '.join(host.entry.aliases)}")
    return lines


def _examples(url: str, model: str, task: str, tandem: str) -> list[str]:
    if task == "Embed":
        body = json.dumps({"model": model, "input": "Hello"})
        return [
            f"Ollama   curl {url}/api/embed -d '{body}'",
            f"OpenAI   curl {url}/v1/embeddings -d '{body}'",
            f"clients  OPENAI_BASE_URL={url}/v1 (any key), OLLAMA_HOST={url}",
        ]
    ask = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    where = "" if url == DEFAULT_URL else f" --url {url}"
    return [
        f"chat     {tandem} run {model}{where}",
        f"Ollama   curl -N {url}/api/chat -d '{json.dumps(ask)}'",
        f"OpenAI   curl -N {url}/v1/chat/completions -d '{json.dumps({**ask, 'stream': True})}'",
        f"clients  OPENAI_BASE_URL={url}/v1 (any key), OLLAMA_HOST={url}",
    ]
