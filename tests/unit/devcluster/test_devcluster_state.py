"""The files that say who runs, and the locks between runs."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tandem_devcluster import locks, ports, state
from tandem_devcluster.state import Phase, ProcessId, Spec, State


def test_a_process_is_its_pid_and_its_start_time() -> None:
    me = state.identify(os.getpid())
    assert me is not None
    assert state.alive(me)
    assert not state.alive(ProcessId(me.pid, me.started - 1)), "the pid of an ended process was used again"
    assert not state.alive(None)


def test_a_zombie_counts_as_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()  # its end of the pipe closes when it ends
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT) is None:
        pass
    assert Path(f"/proc/{child.pid}/stat").exists()
    assert state.identify(child.pid) is None
    child.wait()
    child.stdout.close()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    spec = Spec("dev", True, "/k", "/c", ["/i.tar"], {"api": 1}, 7, 3)
    running = State(ProcessId(1, 2), 3.5, ProcessId(4, 5))
    phase = Phase("starting", "waiting", {"etcd": 9})
    for name, value in (("spec.json", spec), ("state.json", running), ("phase.json", phase)):
        state.write_json(tmp_path / name, value)
    assert (state.read_spec(tmp_path), state.read_state(tmp_path)) == (spec, running)
    assert state.read_phase(tmp_path) == phase
    state.write_json(tmp_path / "state.json", State(ProcessId(1, 2), 3.5))
    assert state.read_state(tmp_path) == State(ProcessId(1, 2), 3.5, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["phase.json", "spec.json", "state.json"]


@pytest.mark.parametrize("text", [None, "", "{", "[]"])
def test_an_unreadable_file_is_no_state(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "state.json").write_text(text)
    assert state.read_state(tmp_path) is None


def test_a_lock_has_one_holder_and_its_file_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = locks.try_lock(path, "the first")
    assert first is not None
    assert locks.try_lock(path, "the second") is None
    assert locks.holder_of(path) == "the first"
    locks.unlock(path, first)
    assert not path.exists()
    assert locks.holder_of(path) == ""
    second = locks.try_lock(path, "the second")
    assert second is not None
    locks.unlock(path, second)


def test_many_threads_enter_one_at_a_time(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def enter() -> None:
        for _ in range(5):
            with locks.locked(tmp_path / "lock", 30):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert list(tmp_path.iterdir()) == []


def test_waiting_for_a_lock_ends(tmp_path: Path) -> None:
    held = locks.try_lock(tmp_path / "lock", "somebody")
    assert held is not None
    with pytest.raises(TimeoutError, match="held by process somebody"), locks.locked(tmp_path / "lock", 0.0):
        pass
    locks.unlock(tmp_path / "lock", held)


def test_ports_are_different_and_free() -> None:
    chosen = ports.choose(["a", "b", "c"])
    assert list(chosen) == ["a", "b", "c"]
    assert len(set(chosen.values())) == 3
    assert all(ports.RANGE[0] <= port < ports.RANGE[1] for port in chosen.values())


def test_taken_ports_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with ports.socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports.random, "sample", lambda _range, _count: [port, port])
        with pytest.raises(OSError, match="no 1 free TCP ports"):
            ports.choose(["a"])
