from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner


@pytest.fixture(autouse=True, scope="session")
def signals() -> Iterator[None]:
    """What is started is told of a hang-up and of Ctrl-C, also where these tests run under nohup or
    in the background of a script.
    """
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGHUP, hang_up)


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory that is the home too, and no variable of ours."""
    for name in [name for name in os.environ if name.startswith("TASKCAST_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def runner(clean: Path) -> CliRunner:
    return CliRunner()


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """Undo `setup_logging` after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
