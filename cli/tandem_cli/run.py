"""`tandem run MODEL`: a chat at the terminal, or one answer to a prompt from the command line or standard input.

Talks to a running server or gateway; a folder or hf:// model that none serves is served by a process of its own for
as long as the chat lasts.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tandem_cli.address import UrlOption, server_at
from tandem_cli.chat.client import Described, Server
from tandem_cli.chat.conversation import Conversation
from tandem_cli.chat.settings import Value, parse_setting
from tandem_cli.chat.talk import Talk, standard_console
from tandem_cli.chat.trouble import Trouble
from tandem_cli.lent import lent_server
from tandem_cli.names import model_name, model_source

_PATH = re.compile(r"^(\.{0,2}/|\.{1,2}$|~|[a-z]+://)")
INTERRUPTED = 130


def is_source(model: str) -> bool:
    """Whether MODEL is a folder or a URL rather than a served name, which may be `name:tag` or `namespace/name`."""
    return _PATH.match(model) is not None or ("/" in model and Path(model).is_dir())


def run(
    model: Annotated[str, typer.Argument(help="A served model's name, a checkpoint's folder, or hf://org/name.")],
    prompt: Annotated[list[str] | None, typer.Argument(help="One question; without it, a chat.")] = None,
    url: UrlOption = None,
    system: Annotated[str, typer.Option(help="Tells the model how to behave.")] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Such as temperature=0. May be repeated.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Counts and times after each answer.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the next words of an answer.")] = 600.0,
) -> None:
    """Chat with a model in the terminal, or give it a prompt as an argument or on standard input."""
    conversation = Conversation(system, _settings(settings or []), verbose)
    question = _question(prompt or [])
    console = standard_console()
    try:
        with _served(model, url, timeout, console) as (server, described):
            talk = Talk(server, described.name, conversation, console, sys.stdout)
            if question is not None:
                talk.once(question)
            else:
                _greet(server, described, console)
                talk.chat()
    except Trouble as error:
        sys.stderr.write(f"tandem run: {error}\n")
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        raise typer.Exit(INTERRUPTED) from None


def _settings(given: list[str]) -> dict[str, Value]:
    try:
        return dict(parse_setting(name.strip(), value) for name, _, value in (text.partition("=") for text in given))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from None


def _question(words: list[str]) -> str | None:
    """The prompt of a single answer: the arguments, then what is piped in; None for a chat."""
    parts = [" ".join(words)] if words else []
    if not sys.stdin.isatty():
        parts.append(sys.stdin.read())
    question = "\n\n".join(part for part in parts if part.strip())
    if question:
        return question
    if words or not sys.stdin.isatty():
        raise typer.BadParameter("there is nothing to answer; give a prompt as an argument or on standard input")
    return None


@contextmanager
def _served(model: str, url: str | None, patience: float, console: Console) -> Iterator[tuple[Server, Described]]:
    """The server to talk to, and the model as it has it. Raises Trouble."""
    server = server_at(url, patience)
    try:
        described = _described(server, model, named=url is not None)
        if described is not None:
            yield server, described
            return
    finally:
        server.close()
    with lent_server(model, console) as (lent, name):
        yield lent, _for_chat(lent.describe(name))


def _described(server: Server, model: str, named: bool) -> Described | None:
    """The model on this server; None where it is a source that the server does not serve. Raises Trouble.

    `named`: the person has named this server, so that no other may answer.
    """
    if not is_source(model):
        return _for_chat(server.describe(model))
    source = model_source(model)
    try:
        described = server.describe(model_name(source))
    except Trouble:
        if named:
            raise
        return None  # whatever is wrong there: a server of our own needs nothing of it
    if described.source == source:
        return _for_chat(described)
    if named:
        raise Trouble(f"{described.name} at {server.url} may be another model than {source}; ask for it by its name")
    return None


def _for_chat(described: Described) -> Described:
    if described.embeds:
        raise Trouble(
            f"{described.name} makes embeddings and cannot chat; POST /api/embed or /v1/embeddings takes text"
        )
    return described


def _greet(server: Server, described: Described, console: Console) -> None:
    context = f", {described.context} tokens of context" if described.context else ""
    console.print(
        f"{described.name} at {server.url}{context}. /help tells the commands, /bye or Ctrl-D ends.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if described.context_reason:
        console.print(f"Less context than asked for: {described.context_reason}", markup=False, highlight=False)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(run)
