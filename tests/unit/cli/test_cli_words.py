"""Sizes, times and addresses as people read them, and the texts of the load bars."""

from datetime import UTC, datetime

import pytest

from tandem_api.report import ModelReport, ModelState, Progress
from tandem_cli.loading import bytes_text, phase_text, rate_text
from tandem_cli.words import processor_text, server_url, size_text, until_text

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (417_423_360, "417 MB"), (6_700_000, "6.7 MB"),
     (999_999_999, "1.0 GB"), (1_340_000_000, "1.3 GB"), (70e9, "70 GB")],
)  # fmt: skip
def test_sizes(number, text):
    assert size_text(number) == text


@pytest.mark.parametrize(
    ("expires", "text"),
    [
        (None, "Forever"), ("2318-01-01T00:00:00Z", "Forever"),
        ("2026-11-23T12:04:59.123456789Z", "4 minutes from now"),
        ("2026-11-23T14:05:00+01:00", "1 hour from now"), ("2026-11-23T12:00:01Z", "1 second from now"),
        ("2026-11-23T11:00:00Z", "about now"), ("in use", "in use"), ("2026-11-25T13:00:00", "2 days from now"),
    ],
)  # fmt: skip
def test_until(expires, text):
    assert until_text(expires, NOW) == text


def test_processors():
    assert [processor_text(100, on_gpu) for on_gpu in (0, 75, 100)] == ["100% CPU", "25%/75% CPU/GPU", "100% GPU"]
    assert processor_text(0, 0) == "100% CPU"


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("127.0.0.1:11434", "http://127.0.0.1:11434"), ("http://x:80/", "http://x:80"), ("https://x/v1/", "https://x"),
        (" localhost ", "http://localhost"), ("[::1]:5", "http://[::1]:5"), ("https://host/tandem", "https://host/tandem"),
    ],
)  # fmt: skip
def test_addresses(typed, url):
    assert server_url(typed) == url


@pytest.mark.parametrize("typed", ["", "ftp://x", "http://", "x:0", "x:99999"])
def test_what_is_no_address_is_told(typed):
    with pytest.raises(ValueError):
        server_url(typed)


def report(state=ModelState.LOADING, error=None, **progress) -> ModelReport:
    told = Progress(**progress) if progress else None
    return ModelReport(name="m", state=state, progress=told, last_error=error)


def test_a_bar_tells_phase_bytes_rate_and_time_left():
    half = Progress(phase="reading", fraction=0.5, done_bytes=500_000_000, total_bytes=1_000_000_000, eta_seconds=5.0)
    assert bytes_text(half) == "500 MB of 1.0 GB"
    assert rate_text(half) == "100 MB/s, 5 s left"
    assert bytes_text(Progress(done_bytes=2_000_000, total_bytes=8_000_000)) == "2.0 of 8.0 MB"
    assert rate_text(half.model_copy(update={"eta_seconds": 125.0})) == "4.0 MB/s, 2 min 5 s left"


def test_a_bar_does_not_tell_what_it_does_not_know():
    for told in (None, Progress(phase="starting"), Progress(phase="x", done_bytes=1, total_bytes=2)):
        assert rate_text(told) == ""
    assert bytes_text(Progress(phase="starting")) == ""


def test_phases():
    assert phase_text(report()) == "starting"
    assert phase_text(report(error="it died")) == "trying again"
    assert phase_text(report(phase="warming up")) == "warming up"
    assert phase_text(report(ModelState.LOADED)) == "loaded"
    assert phase_text(report(ModelState.FAILED)) == "cannot be loaded"
