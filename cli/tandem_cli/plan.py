"""`tandem plan`: what fits on a GPU, before there is a pod: slots times context, and who would have to make room.

Computed by the functions that pods go by (`tandem_api.fit`, `tandem_server.residency.rules`); nothing is loaded.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tandem_api.fields import Device
from tandem_api.fit import Wish, reserve_bytes
from tandem_api.scalars import memory_bytes
from tandem_cli.names import model_name
from tandem_cli.plan_screen import plan_json, plan_lines
from tandem_cli.plan_source import SourceTrouble, read_source
from tandem_cli.planning import Model, make_plan
from tandem_server.engine.estimate import estimate
from tandem_server.engine.interface import LoadError

Number = Literal["Auto", "Float32", "BFloat16", "Float16"]


def _size(text: str) -> int:
    try:
        return memory_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def plan(
    source: Annotated[str, typer.Argument(help="A checkpoint's folder, or hf://org/name@revision.")],
    gpu: Annotated[
        int | None, typer.Option(parser=_size, metavar="SIZE", help="Memory of each GPU, such as 24GiB.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, max=16, help="How many of them a pod has.")] = 1,
    cpu: Annotated[
        int | None, typer.Option(parser=_size, metavar="SIZE", help="Compute on CPUs, with so much memory.")
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="SOURCE", help="A model that is loaded already, the longest unused first."),
    ] = None,
    slots: Annotated[int | None, typer.Option(min=1, max=1024, help="Requests that run at once (default 4).")] = None,
    context: Annotated[
        int | None, typer.Option(min=4, max=16_777_216, help="Tokens a slot (default: the model's own limit).")
    ] = None,
    min_length: Annotated[
        int, typer.Option("--min-length", min=4, help="The least context that will do (context.minLength).")
    ] = 256,
    fail: Annotated[
        bool, typer.Option("--fail", help="Less context than asked will not do (whenShort: Fail).")
    ] = False,
    shared: Annotated[
        bool, typer.Option("--shared", help="Slots share one pool of contexts (kvCache.policy: Shared).")
    ] = False,
    dtype: Annotated[Number, typer.Option(case_sensitive=False, help="Of the computation.")] = "Auto",
    quantization: Annotated[
        Literal["None", "Int8", "Int4"], typer.Option(case_sensitive=False, help="Of the weights.")
    ] = "None",
    kv_dtype: Annotated[
        Literal["Auto", "FP8"], typer.Option(case_sensitive=False, help="Of keys and values.")
    ] = "Auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show what fits: slots and context of a model on a GPU of a given size, alone and beside others."""
    if (gpu is None) == (cpu is None):
        raise typer.BadParameter("say how much memory there is: --gpu 24GiB, or --cpu 16GiB", param_hint="--gpu")
    if gpus > 1 and gpu is None:
        raise typer.BadParameter("counts GPUs: say their size by --gpu", param_hint="--gpus")
    asked = Wish(
        device=Device.CPU if gpu is None else Device.GPU,
        dtype=dtype,
        quantization=quantization,
        slots=slots,
        context=context,
        min_context=min_length,
        may_shrink=not fail,
        cache_dtype=kv_dtype,
        shared=shared,
    )
    try:
        model = _read(source, asked)
        others = [_read(text, Wish(device=asked.device)) for text in beside or []]
    except (SourceTrouble, LoadError) as error:
        sys.stderr.write(f"tandem plan: {error}\n")
        raise typer.Exit(1) from error
    size = gpu or cpu or 0
    kept = reserve_bytes(size)  # as a pod does without TANDEM_DEVICE_MEMORY
    made = make_plan(model, _told_apart(model, others), [max(0, size - kept)] * gpus, kept)
    if as_json:
        print(json.dumps(plan_json(made), indent=2))
    else:
        _print(plan_lines(made))
    if not made.possible:
        raise typer.Exit(3)


def _read(text: str, wish: Wish) -> Model:
    folder, tensors = read_source(text)
    name = model_name(text if "://" in text else f"file://{Path(text).expanduser().resolve()}")
    try:
        return Model(name, estimate(folder, wish, tensors))
    except LoadError as error:
        raise LoadError(f"{text} would not load: {error}") from None


def _told_apart(model: Model, others: list[Model]) -> list[Model]:
    """The same models, with a number behind names that are there already."""
    taken, told = {model.name}, []
    for other in others:
        name, number = other.name, 2
        while name in taken:
            name, number = f"{other.name}-{number}", number + 1
        taken.add(name)
        told.append(Model(name, other.estimate))
    return told


def _print(parts: list[Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for part in parts:
        console.print(part)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(plan)
