"""One conversation: what was said, what is set, and what a typed line means.

Pure state between the prompt and the server; nothing here reads or writes anything.
"""

import re
from dataclasses import dataclass, field

from tandem_cli.chat.dialects import Message
from tandem_cli.chat.settings import SETTINGS, Value, parse_setting

_COMMAND = re.compile(r"^/([a-z?]+)(?:\s+(.*))?$", re.DOTALL)
HELP = '''\
  /bye                  ends (so does Ctrl-D)
  /clear                forgets what was said
  /set                  shows what is set
  /set NAME VALUE       sets one of the names below
  /set system TEXT      tells the model how to behave
  /set verbose, quiet   counts and times after each answer, or not
  /help                 this

  """  begins a text of several lines, the next """ ends it; so does a \\ at a line's end go on.
  Ctrl-C stops an answer.
'''


@dataclass
class Conversation:
    """What goes to the server with each request."""

    system: str = ""
    settings: dict[str, Value] = field(default_factory=dict)
    verbose: bool = False
    said: list[Message] = field(default_factory=list)

    def asking(self, prompt: str) -> list[Message]:
        """All messages of a request with one more from the person."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.said, {"role": "user", "content": prompt}]

    def answered(self, prompt: str, answer: str) -> None:
        """Keeps an exchange. One that was stopped before its first word leaves no trace."""
        if answer:
            self.said += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]

    def set(self, text: str) -> str:
        """`/set`'s argument; returns what to tell. Raises ValueError with a sentence."""
        name, _, value = text.strip().partition(" ")
        if name == "parameter":
            name, _, value = value.strip().partition(" ")
        if not name:
            return self._shown()
        if name in ("verbose", "quiet"):
            self.verbose = name == "verbose"
            return f"{name} from now on"
        if name == "system":
            self.system = value.strip().removeprefix('"').removesuffix('"')
            return "the model is told so from now on" if self.system else "the model is told nothing from now on"
        name, parsed = parse_setting(name, value)
        self.settings[name] = parsed
        return f"{name} is {parsed}"

    def _shown(self) -> str:
        width = max(map(len, SETTINGS))
        lines = [f"  {'system':{width}}  {self.system}"] if self.system else []
        for name, setting in SETTINGS.items():
            value = f"= {self.settings[name]}" if name in self.settings else ""
            lines.append(f"  {name:{width}}  {value or setting.meaning}")
        return "\n".join(lines)


def command(line: str) -> tuple[str, str] | None:
    """The name and argument of a line such as `/set seed 1`; None where it is something to say (`/usr/bin is ...`)."""
    found = _COMMAND.match(line.strip())
    return None if found is None else (found[1], found[2] or "")
