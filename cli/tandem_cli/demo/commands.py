"""kubectl, helm, docker and kind as the demo calls them: a bound on each call, and errors in one line."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tandem_cli.demo.story import DemoError


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: str | bytes | None = None,
    timeout: float = 120,
) -> str:
    """Standard output of a command. Raises DemoError with its last line of complaint."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    try:
        done = subprocess.run(
            command, env={**os.environ, **(env or {})}, input=data, capture_output=True, timeout=timeout, check=False
        )
    except FileNotFoundError as error:
        raise DemoError(f"{command[0]} is not installed or not on the PATH") from error
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"`{' '.join(command)}` did not end within {timeout:.0f} s") from error
    if done.returncode:
        complaint = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise DemoError(f"`{' '.join(command)}` failed: {complaint[-1500:] or f'exit status {done.returncode}'}")
    return done.stdout.decode(errors="replace")


@dataclass(frozen=True)
class Kubernetes:
    """kubectl and helm bound to one cluster."""

    environment: Mapping[str, str] = field(default_factory=dict)

    def kubectl(self, *arguments: str, stdin: str | bytes | None = None, timeout: float = 120) -> str:
        """Runs kubectl and gives its output."""
        return run(["kubectl", *arguments], env=self.environment, stdin=stdin, timeout=timeout)

    def helm(self, *arguments: str, stdin: str | None = None, timeout: float = 300) -> str:
        """Runs helm and gives its output."""
        return run(["helm", *arguments], env=self.environment, stdin=stdin, timeout=timeout)

    def apply(self, objects: Sequence[Mapping[str, Any]]) -> None:
        """Server-side applies objects."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kubectl("apply", "--server-side", "--field-manager=tandem-demo", "-f", "-", stdin=text)

    def get(self, *arguments: str) -> dict[str, Any]:
        """An object, or a list of them, as a dictionary."""
        result: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return result
