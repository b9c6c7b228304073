"""Runs a benchmark and keeps its result in docs/benchmarks.md: `record.py NAME COMMAND...` (`make record-NAME`).

The benchmark's last line of output is one JSON object (`name`, `machine`, `versions`, `aims`); this writes it as a
table between the markers of that name, with the command and the date, so that no figure is copied by hand.
"""

import datetime
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
HEADER = """# Benchmarks

Every table is written by `tools/record.py` from one run of the command above it; nothing is copied by hand. The
machines differ and are noisy: trust the ratios, which are taken within one run, more than the absolute figures.
"""


def section(name: str, command: list[str], result: dict[str, Any], date: str) -> str:
    """The Markdown of one result."""
    lines = [f"<!-- begin {name} -->", f"## {name}", "", f"`{shlex.join(command)}`, {date}", ""]
    lines += [f"Machine: {result['machine']}", "", f"Versions: {_pairs(result['versions'])}", ""]
    lines += ["| aim | value | spread | target | met |", "| --- | --- | --- | --- | --- |"]
    for aim in result["aims"]:
        met = {True: "yes", False: "**no**", None: "-"}[aim["ok"]]
        lines.append(f"| {aim['aim']} | {aim['value']} | {aim['spread']} | {aim['target']} | {met} |")
    return "\n".join([*lines, f"<!-- end {name} -->", ""])


def _pairs(versions: dict[str, str] | str) -> str:
    return versions if isinstance(versions, str) else ", ".join(f"{key} {value}" for key, value in versions.items())


def insert(page: str, name: str, text: str) -> str:
    """`page` with the section of `name` replaced, or added at the end."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if begin in page:
        before, rest = page.split(begin, 1)
        return before + text.rstrip("\n") + rest.split(end, 1)[1]
    return page.rstrip("\n") + "\n\n" + text


def main() -> int:
    """Runs the command, shows its output, keeps its last line."""
    name, command = sys.argv[1], sys.argv[2:]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="")
    if done.returncode:
        return done.returncode
    result = json.loads(done.stdout.strip().splitlines()[-1])
    page = PAGE.read_text() if PAGE.exists() else HEADER
    PAGE.write_text(
        insert(page, name, section(name, command, result, datetime.datetime.now(datetime.UTC).date().isoformat()))
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
