"""The `tandem` command: where its subcommands come together."""

import typer

from tandem_cli.serve import serve

app = typer.Typer(
    name="tandem",
    help="Language models as Kubernetes resources, and without Kubernetes too.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def tandem() -> None:
    """Keeps subcommands named even while there is only one."""


app.command()(serve)
