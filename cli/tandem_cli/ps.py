"""`tandem ps`: what a server has loaded, once or as it changes."""

import sys
import time
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tandem_cli.address import UrlOption, server_at
from tandem_cli.chat.client import Server
from tandem_cli.chat.trouble import NoServer, Trouble
from tandem_cli.running import Row, lines, notes, rows

REFRESHES = 4
"""A second at most, whatever the interval."""


def ps(
    url: UrlOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing it until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.25, max=3600, help="Seconds between two looks with -w.")] = 1.0,
) -> None:
    """List the models that a server has loaded, with their slots and queues."""
    if watch and not sys.stdout.isatty():
        raise typer.BadParameter("a table that changes needs a terminal", param_hint="--watch")
    server = server_at(url)
    try:
        if watch:
            _watch(server, interval)
        else:
            _once(server)
    except Trouble as error:
        sys.stderr.write(f"tandem ps: {error}\n")
        raise typer.Exit(1) from error
    finally:
        server.close()


def _look(server: Server) -> list[Row]:
    return rows(server.running(), server.report(), datetime.now(UTC))


def _once(server: Server) -> None:
    found = _look(server)
    Console(highlight=False).print("\n".join(lines(found)), soft_wrap=True, markup=False)
    for note in notes(found):
        Console(stderr=True, highlight=False).print(note, style="yellow", soft_wrap=True, markup=False)


def _watch(server: Server, interval: float) -> None:
    """Until Ctrl-C. A server that goes away is waited for; one that was never there is an error."""
    found = _look(server)
    try:
        with Live(_shown(found), refresh_per_second=REFRESHES, screen=False) as live:
            while True:
                time.sleep(interval)
                try:
                    live.update(_shown(_look(server)))
                except NoServer:
                    live.update(Text(f"the server at {server.url} is gone since {datetime.now():%H:%M:%S}; looking on"))
    except KeyboardInterrupt:
        return


def _shown(found: list[Row]) -> Group:
    """Lines that are cut at the terminal's edge: wrapped ones would make the table hard to read as it changes."""
    rest = [Text(note, style="yellow") for note in notes(found)]
    return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines(found)), *rest)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(ps)
