"""`tandem demo up|down`: what a person calls; `make demo` does."""

from collections.abc import Callable
from typing import Annotated

import typer

from tandem_cli.demo import flow
from tandem_cli.demo.story import DemoError, Story

app = typer.Typer(help="A cluster, the chart, two Models and streamed answers, on this machine.", no_args_is_help=True)
Cluster = Annotated[str, typer.Option(help="auto, node (Linux and root), kind (Docker) or current (your KUBECONFIG).")]


@app.command()
def up(
    cluster: Cluster = "auto",
    model: Annotated[str | None, typer.Option(help="hf://org/name instead of the small model.")] = None,
) -> None:
    """Goes from nothing to streamed answers; the cluster stays up."""
    _run(lambda story: flow.up(story, cluster, model))


@app.command()
def down(cluster: Cluster = "auto") -> None:
    """Ends the demo and leaves nothing behind."""
    _run(lambda story: flow.down(story, cluster))


def _run(work: Callable[[Story], None]) -> None:
    story = Story()
    try:
        work(story)
    except DemoError as error:
        story.console.print(f"tandem demo: {error}", style="red", markup=False)
        raise typer.Exit(1) from error
