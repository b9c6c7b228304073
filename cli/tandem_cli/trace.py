"""`tandem trace`: what the last steps of a model's engine did and when, as a file for Perfetto."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tandem_cli.address import UrlOption, server_at
from tandem_cli.chat.trouble import Trouble


def trace(
    model: Annotated[str, typer.Argument(help="The model, as 'tandem ps' names it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write it.")] = Path("trace.json"),
    url: UrlOption = None,
) -> None:
    """Write the last steps of a model's engine as a trace; open it at ui.perfetto.dev or chrome://tracing."""
    server = server_at(url)
    try:
        told = server.trace(model)
        output.write_text(json.dumps(told), encoding="utf-8")
    except Trouble as error:
        sys.stderr.write(f"tandem trace: {error}\n")
        raise typer.Exit(1) from error
    except OSError as error:
        sys.stderr.write(f"tandem trace: {output} cannot be written: {error.strerror}\n")
        raise typer.Exit(1) from error
    finally:
        server.close()
    typer.echo(f"{summary(told)}\n{output}: open it at https://ui.perfetto.dev or chrome://tracing.")


def summary(told: dict[str, Any]) -> str:
    """One line on what is in a trace."""
    about = told.get("otherData") or {}
    steps = int(about.get("steps") or 0)
    if not steps:
        return f"{about.get('model')}: no steps yet; send it a request first."
    ends = [event["ts"] + event["dur"] for event in told["traceEvents"] if event["ph"] == "X"]
    idle = float(about.get("device_idle_share") or 0.0)
    return f"{about.get('model')}: {steps} steps in {max(ends) / 1e6:.2f} s; the device waited {idle:.1%} of its time."


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(trace)
