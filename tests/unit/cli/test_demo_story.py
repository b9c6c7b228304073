"""What a person sees while the demo works, and how a wait ends."""

import io

import pytest
from rich.console import Console

from tandem_cli.demo.story import DemoError, Story


def story() -> tuple[Story, io.StringIO]:
    out = io.StringIO()
    return Story(Console(file=out, force_terminal=False, width=200)), out


def test_wait_tells_each_new_state_once() -> None:
    states = iter(["Pending", "Pending", "Loading", "Ready"])
    told, out = story()

    def probe() -> tuple[bool, str]:
        state = next(states)
        return state == "Ready", state

    told.wait("Model x", probe, deadline_seconds=30)
    lines = [line.split("s  ", 1)[1].strip() for line in out.getvalue().splitlines()]
    assert lines == ["Model x …", "Pending", "Loading", "Ready"]


def test_wait_ends_with_the_last_state_at_its_deadline() -> None:
    told, _ = story()
    with pytest.raises(DemoError, match=r"not done after 0 s; last seen: insufficient nvidia.com/gpu"):
        told.wait("Model x", lambda: (False, "insufficient nvidia.com/gpu"), deadline_seconds=0)


def test_text_with_brackets_is_printed_as_it_is() -> None:
    told, out = story()
    told.plain("values [/bold] stay")
    assert out.getvalue() == "values [/bold] stay\n"
