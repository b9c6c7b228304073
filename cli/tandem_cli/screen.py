"""What a person sees while `tandem serve` loads, and the first screen when it serves.

Runs beside the pod on its event loop, and only reads from it. Without a terminal there is no progress bar: the pod's
log lines tell the same.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tandem_api.report import ModelState

if TYPE_CHECKING:
    from tandem_server.pod import Pod
    from tandem_server.residency.host import ModelHost

LOOK_SECONDS = 0.1


async def _until(true: Callable[[], bool]) -> None:
    """Looks now and then: what is shown need not be told by those it is about."""
    while not true():  # noqa: ASYNC110 - the pod has no event for a bystander, and should not
        await asyncio.sleep(LOOK_SECONDS)


class Screen:
    """Shows one pod on the terminal."""

    def __init__(self, address: str, console: Console | None = None) -> None:
        self._address = f"[{address}]" if ":" in address else address
        self._console = console or Console(stderr=True)

    async def show(self, pod: "Pod", port: int) -> None:
        """Follows the load of every model, then prints the first screen."""
        await _until(lambda: bool(pod.manager.hosts))
        if self._console.is_terminal:
            await self._bars(pod)
        await _until(lambda: self._settled(pod))
        if any(host.loaded for host in pod.manager.hosts.values()):
            self._console.print(
                first_screen(f"http://{self._address}:{port}", list(pod.manager.hosts.values())),
                soft_wrap=True,
                markup=False,
                highlight=False,
            )

    def _settled(self, pod: "Pod") -> bool:
        done = (ModelState.LOADED, ModelState.FAILED)
        return all(host.state in done for host in pod.manager.hosts.values())

    async def _bars(self, pod: "Pod") -> None:
        columns = (
            TextColumn("{task.fields[model]}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            bars = {name: progress.add_task("starting", total=1.0, model=name) for name in pod.manager.hosts}
            while not self._settled(pod):
                for name, host in pod.manager.hosts.items():
                    if name in bars:
                        self._move(progress, bars[name], host)
                await asyncio.sleep(LOOK_SECONDS)

    def _move(self, progress: Progress, bar: object, host: "ModelHost") -> None:
        told = host.progress
        if host.state is ModelState.LOADED:
            progress.update(bar, completed=1.0, description="loaded")  # type: ignore[arg-type]
        elif told is not None:
            left = f", about {told.eta_seconds:.0f} s left" if told.eta_seconds and told.eta_seconds >= 1 else ""
            progress.update(bar, completed=told.fraction, description=f"{told.phase}{left}")  # type: ignore[arg-type]


def first_screen(url: str, hosts: "list[ModelHost]") -> str:
    """The lines that tell what is served where, and one command to try it."""
    lines = ["", f"Tandem serves at {url}", ""]
    for host in hosts:
        loaded = host.loaded
        if loaded is None:
            lines.append(f"  {host.entry.name}: cannot be loaded: {host.last_error}")
            continue
        kind = "embeddings" if loaded.task == "Embed" else "chat"
        lines.append(
            f"  {host.entry.name}: {kind}, {loaded.slots} requests at once, {loaded.context} tokens each, "
            f"{loaded.dtype} on {loaded.device}"
        )
    lines += ["", f"  OpenAI clients: base URL {url}/v1 (any API key)", f"  Ollama clients: OLLAMA_HOST={url}", ""]
    example = next((host for host in hosts if host.loaded is not None), None)
    if example is not None and example.loaded is not None:
        lines += ["Try:", "", f"  {_example(url, example.entry.name, example.loaded.task)}", ""]
    lines.append("Ctrl-C ends it.")
    return "\n".join(lines)


def _example(url: str, model: str, task: str) -> str:
    if task == "Embed":
        return f"""curl {url}/api/embed -d '{{"model": "{model}", "input": "Hello"}}'"""
    return (
        f"""curl -N {url}/api/chat -d '{{"model": "{model}", """
        """"messages": [{"role": "user", "content": "Hello"}]}'"""
    )
