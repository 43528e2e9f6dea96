"""The log: a sentence for the user, the traceback in the file, and no file while nothing goes wrong."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from rankscope.engine.errors import InputError
from rankscope.tui.screens import error_log as log
from rankscope.tui.screens import first_run


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for state and logs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def _raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:  # noqa: BLE001 - with its traceback
        return caught


def test_a_sentence_and_a_traceback(state: Path) -> None:
    assert not log.log_path().exists()
    assert state in log.log_path().parents
    told = log.report(_raised(ValueError("no\nsuch \x1b[31m thing")), "drawing")
    assert told == f"drawing failed: ValueError: no\\nsuch \\x1b[31m thing; details in {log.log_path()}"
    text = log.log_path().read_text()
    assert "rankscope-tui" in text
    assert "drawing failed" in text
    assert "in _raised\n    raise error\nValueError: no\nsuch" in text
    log.report(_raised(KeyError("second")), "the key s")
    assert log.log_path().read_text().startswith(text)


def test_what_the_user_can_mend_is_only_said() -> None:
    assert log.report(_raised(InputError("no such \x07 file: name another")), "x") == "no such \\x07 file: name another"
    assert not log.log_path().exists()


def test_it_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_BYTES", 2000)
    for number in range(50):
        log.report(_raised(ValueError(str(number))), "x")
    files = sorted(path.name for path in log.log_path().parent.iterdir())
    assert files == ["rankscope.log", "rankscope.log.1"]
    assert "ValueError: 49" in log.log_path().read_text()
    assert all(path.stat().st_size < 3000 for path in log.log_path().parent.iterdir())


def test_where_it_cannot_be_written_the_sentence_stands_alone(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (state / "rankscope").write_text("a file in the way")
    assert log.report(_raised(ValueError("why")), "x") == "x failed: ValueError: why"
    (state / "rankscope").unlink()
    log.log_path().parent.mkdir(parents=True)
    log.log_path().symlink_to("/dev/full")
    assert log.report(_raised(ValueError("why")), "x") == "x failed: ValueError: why"
    assert capsys.readouterr() == ("", "")


def test_threads_may_fail_together() -> None:
    def fail(number: int) -> None:
        log.report(_raised(ValueError(f"number {number}.")), "x")

    threads = [threading.Thread(target=fail, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = log.log_path().read_text()
    assert all(f"ValueError: number {number}.\n" in text for number in range(20))


def test_the_first_run_is_the_first_only(state: Path) -> None:
    assert first_run.is_first_run()
    assert first_run.is_first_run()
    first_run.mark_seen()
    assert not first_run.is_first_run()
    first_run.mark_seen()
    assert [path.name for path in (state / "rankscope").iterdir()] == ["seen"]


def test_a_mark_that_cannot_be_left_is_no_error(state: Path) -> None:
    (state / "rankscope").write_text("a file in the way")
    first_run.mark_seen()
    assert first_run.is_first_run()
