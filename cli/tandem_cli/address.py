"""Which server `tandem run` and `tandem ps` talk to, and with which key: option, environment, default."""

import os
from typing import Annotated

import typer

from tandem_cli.chat.client import Server
from tandem_cli.words import server_url

DEFAULT_URL = "http://127.0.0.1:11434"
"""Where `tandem serve` listens unless told otherwise."""
UrlOption = Annotated[
    str | None,
    typer.Option("--url", envvar="TANDEM_URL", help=f"Address of a server or gateway (default: {DEFAULT_URL})."),
]


def server_at(url: str | None, patience: float = 600.0) -> Server:
    """The server that was asked for; the key comes from TANDEM_API_KEY. Raises typer.BadParameter."""
    try:
        address = server_url(url or DEFAULT_URL)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--url") from None
    return Server(address, os.environ.get("TANDEM_API_KEY") or None, patience)
