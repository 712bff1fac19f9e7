"""Progress: a bar on a terminal, plain lines elsewhere, and every item passed on."""

import io
import logging
import sys

import pytest

from rdl_core import progress as module
from rdl_core.progress import log_plainly, progress


@pytest.fixture
def work(monkeypatch, caplog):
    """Work through items that take some seconds each; gives what was done and the lines."""
    clock = type("Clock", (), {"now": 100.0, "monotonic": lambda self: self.now})()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(sys, "stderr", io.StringIO())

    def work(n, seconds, done=0):
        caplog.clear()
        seen = []
        with caplog.at_level(logging.INFO, logger="rdl_core"):
            for item in progress(range(done, n), total=n, what="counting", done=done):
                clock.now += seconds
                seen.append(item)
        assert seen == list(range(done, n))
        return [record.getMessage() for record in caplog.records]

    return work


def test_plain_lines_say_how_far_and_how_long(work):
    lines = work(10, 10)
    assert lines[0] == "counting: 2 of 10, about 80 s left"
    assert lines[-1] == "counting: 10 done in 100 s"
    assert 3 <= len(lines) <= 7  # no line for each item
    assert work(10, 20, done=6)[0] == "counting: 7 of 10, about 60 s left"  # resumed
    assert work(5, 0.1) == work(0, 9) == []  # work of a moment
    assert work(1, 3) == ["counting: 1 done in 3 s"]


def test_bar_on_a_terminal(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    items = iter([1, 2, 3])
    shown = progress(items, total=4, what="counting", done=1)
    assert (next(shown), next(items), list(shown)) == (1, 2, [3])  # taken one by one
    assert "counting" in terminal.getvalue()
    assert "3/4" in terminal.getvalue()


def test_lines_are_seen_once_even_when_switched_on_twice(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    log_plainly()
    log_plainly()
    logging.getLogger("rdl_core.progress").info("half-way")
    logging.getLogger("elsewhere").info("not ours")
    assert sys.stderr.getvalue().count("half-way") == 1
    assert "not ours" not in sys.stderr.getvalue()
