"""`tandem serve`: the serving pod on a person's own machine, without Kubernetes.

Makes the catalog from its command line and runs the same application as a pod, on one local port and without a key.
Heavy imports happen inside the command, so that `tandem --help` is quick.
"""

import errno
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tandem_cli.names import model_name, model_source

if TYPE_CHECKING:
    from tandem_api.catalog import Catalog, CatalogModel
    from tandem_server.config import Settings


def catalog_models(
    models: list[str],
    names: list[str],
    slots: int | None,
    context: int | None,
    scheduling: Literal["overlapped", "plain"],
    keep_alive: int | str = -1,
) -> "list[CatalogModel]":
    """One entry a `--model`, named by `--name` in the same order where given. Raises typer.BadParameter."""
    from tandem_api.catalog import CatalogModel
    from tandem_api.fields import ContextSpec, Scheduling

    if len(names) > len(models):
        raise typer.BadParameter(f"{len(names)} names were given for {len(models)} models", param_hint="--name")
    entries: list[CatalogModel] = []
    for index, text in enumerate(models):
        source = model_source(text)
        name = names[index] if index < len(names) else model_name(source)
        if any(entry.name == name for entry in entries):
            raise typer.BadParameter(f"two models would be called {name}; tell them apart", param_hint="--name")
        last = source.rstrip("/").rsplit("/", 1)[-1]
        entries.append(
            CatalogModel(
                name=name,
                source=source,
                aliases=[last] if last != name else [],
                slots="Auto" if slots is None else slots,
                context=ContextSpec(length="Auto" if context is None else context),
                keep_alive=keep_alive,
                scheduling=Scheduling.PLAIN if scheduling == "plain" else Scheduling.OVERLAPPED,
            )
        )
    return entries


def _keep_alive(text: str) -> int | str:
    """A number of seconds stays a number. Raises typer.BadParameter for what is neither that nor a duration."""
    from tandem_api.scalars import DURATION_PATTERN

    if re.fullmatch(r"-1|[0-9]{1,8}", text):
        return int(text)
    if text and re.fullmatch(DURATION_PATTERN, text):
        return text
    raise typer.BadParameter("give seconds, a duration such as 5m, or -1 for ever", param_hint="--keep-alive")


def _device_memory(text: str | None) -> tuple[int, ...]:
    """Bytes of each device; none where nothing is said. Raises typer.BadParameter."""
    from tandem_api.scalars import memory_bytes

    try:
        return tuple(memory_bytes(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--device-memory") from None


def _found_device() -> str:
    return "gpu" if shutil.which("nvidia-smi") else "cpu"


def serve(
    model: Annotated[
        list[str], typer.Option("--model", "-m", help="A checkpoint's folder, or hf://org/name. May be repeated.")
    ],
    name: Annotated[
        list[str] | None, typer.Option("--name", help="What requests call it; one for each --model, in order.")
    ] = None,
    slots: Annotated[int | None, typer.Option(min=1, max=1024, help="Requests that run at once (default 4).")] = None,
    context: Annotated[
        int | None, typer.Option(min=4, max=16_777_216, help="Tokens a slot (default: the model's own limit).")
    ] = None,
    device: Annotated[
        Literal["cpu", "gpu"] | None,
        typer.Option(case_sensitive=False, help="What to compute on (default: gpu where there is an NVIDIA driver)."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on. There is no password: keep it local.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port for all APIs; Ollama's own by default.")] = 11_434,
    scheduling: Annotated[
        Literal["overlapped", "plain"], typer.Option(case_sensitive=False, help="How steps follow each other.")
    ] = "overlapped",
    keep_alive: Annotated[
        str, typer.Option(help="How long an idle model stays loaded: seconds, 5m, or -1 for ever; requests may differ.")
    ] = "-1",
    max_loaded: Annotated[int, typer.Option(min=0, max=1000, help="Models loaded at once (0: three a device).")] = 0,
    device_memory: Annotated[
        str | None, typer.Option(help="What models may take of each device, such as 20GiB or 20GiB,20GiB.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads a model.")] = None,
    log_format: Annotated[Literal["text", "json"], typer.Option(help="Form of the log lines.")] = "text",
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="On a terminal, show all log lines and not only warnings.")
    ] = False,
    lent: Annotated[bool, typer.Option(hidden=True, help="Serve for the process that started this one.")] = False,
) -> None:
    """Serve models over OpenAI- and Ollama-compatible HTTP on this machine."""
    from tandem_api.catalog import ALL_PODS, Catalog
    from tandem_server.config import Settings

    entries = catalog_models(model, name or [], slots, context, scheduling, _keep_alive(keep_alive))
    catalog = Catalog(models=entries, preload={ALL_PODS: [entry.name for entry in entries]}).with_revision()
    settings = Settings.model_validate(
        {
            "device": (device or _found_device()).upper(),
            "host": host,
            "http_port": port,
            "file_roots": (Path("/"),),
            "cache": Path("~/.cache/tandem").expanduser(),
            "threads": threads,
            "log_format": log_format,
            "max_loaded": max_loaded,
            "one_user": True,
            "device_memory": _device_memory(device_memory),
            "linger_seconds": 0.0,
            "drain_seconds": 30.0,
        }
    )
    if device is None and not lent:
        verdict = "an NVIDIA driver is there" if settings.device.value == "GPU" else "there is no NVIDIA driver"
        sys.stderr.write(f"Computing on the {settings.device.value}: {verdict}; --device says otherwise.\n")
    _serve(settings, catalog, verbose, lent)


def _serve(settings: "Settings", catalog: "Catalog", verbose: bool, lent: bool) -> None:
    """Until a signal. Ends the process with status 2 and a sentence when the pod cannot start."""
    import uvloop

    from tandem_cli.lent import tell_and_follow
    from tandem_cli.screen import Screen
    from tandem_cli.terminal import is_quiet, log_above_bars
    from tandem_server import logs
    from tandem_server.config import SettingsError
    from tandem_server.devices import DeviceError
    from tandem_server.serve import run_pod

    screens: list[Screen] = []

    def shows(line: str) -> bool:
        return verbose or not is_quiet(line) or any(screen.ending for screen in screens)

    try:
        with log_above_bars(shows) as console:
            logs.configure(settings.log_format)
            screens.append(Screen(settings.host, console))
            uvloop.run(run_pod(settings, fixed=catalog, companion=tell_and_follow if lent else screens[0].show))
    except (SettingsError, DeviceError) as error:
        taken = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
        hint = " Choose another by --port; 'tandem ps' tells what is served there." if taken else ""
        sys.stderr.write(f"tandem serve: {error}{hint}\n")
        raise typer.Exit(2) from error


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(serve)
