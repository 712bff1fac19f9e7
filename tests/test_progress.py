"""Progress: a bar on a terminal, seldom a line elsewhere, and every item passed on, one by one."""

import io
import logging
import sys
from itertools import count

import pytest

from rdl_core.progress import progress, set_up_process


@pytest.mark.parametrize(("terminal", "step_s", "shown"), [(True, 1, 4), (False, 1, 0), (False, 20, 2)])
def test_every_item_is_passed_on_and_shown_where_one_watches(monkeypatch, terminal, step_s, shown):
    clock = count(100, step_s)
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    sys.stderr.isatty = lambda: terminal
    items = iter([1, 2, 3])
    passed_on = progress(items, total=4, what="counting", done=1)
    assert (next(passed_on), next(items), list(passed_on)) == (1, 2, [3])
    assert sys.stderr.getvalue().count("counting") == shown
    assert ("3/4" in sys.stderr.getvalue()) == (shown > 0)


def test_lines_are_seen_once_even_when_switched_on_twice(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    set_up_process()
    set_up_process()
    logging.getLogger("rdl_core.progress").info("half-way")
    logging.getLogger("elsewhere").info("not ours")
    assert sys.stderr.getvalue().count("half-way") == 1
    assert "not ours" not in sys.stderr.getvalue()
