"""The `tandem` command: where its subcommands come together.

Each is imported only when it is called, so that none pays for another's imports or suffers from its faults.
"""

import importlib
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from typer._click.core import Command, Context

SUBCOMMANDS = {
    "serve": "tandem_cli.serve:app",
    "run": "tandem_cli.run:app",
    "ps": "tandem_cli.ps:app",
    "plan": "tandem_cli.plan:app",
    "trace": "tandem_cli.trace:app",
    "demo": "tandem_cli.demo.command:app",
}
"""Name -> `module:attribute` of a Typer application."""


class _Lazy(TyperGroup):
    def list_commands(self, ctx: "Context") -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: "Context", cmd_name: str) -> "Command | None":
        target = SUBCOMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command: Any = typer.main.get_command(getattr(importlib.import_module(module), attribute))
        command.name = cmd_name
        return command  # type: ignore[no-any-return]


app = typer.Typer(
    name="tandem",
    cls=_Lazy,
    help="Language models as Kubernetes resources, and without Kubernetes too.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def tandem() -> None:
    """Language models as Kubernetes resources, and without Kubernetes too."""
