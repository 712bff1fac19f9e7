"""Progress: a bar on a terminal, lines of the log elsewhere."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

__all__ = ["log_plainly", "progress"]

_LINE_EVERY_S = 15.0
_SILENT_S = 2.0  # work that took no longer is not worth a line
_NOTHING = re.compile(r"\s*$|(Executing|Ending) Cell")  # papermill's lines around cells
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


def progress(items: Iterable[_T], *, total: int, what: str, done: int = 0) -> Iterator[_T]:
    """Pass items on and show how far `what` is: `total` counts those `done` by an earlier run, too."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, initial=done, desc=what, dynamic_ncols=True)
        return
    started = logged = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - logged >= _LINE_EVERY_S:
            left_s = (now - started) / count * (total - done - count)
            _log.info("%s: %d of %d, about %.0f s left", what, done + count, total, left_s)
            logged = now
    if (took := time.monotonic() - started) > _SILENT_S:
        _log.info("%s: %d done in %.0f s", what, total, took)


def log_plainly() -> None:
    """Show messages of this project, and of notebooks it runs, on standard error; to call once."""
    for name in ("rdl_core", "rdl_study", "papermill"):
        handler, logger = logging.StreamHandler(), logging.getLogger(name)
        form = "%(message)s" if name == "papermill" else "%(asctime)s %(message)s"
        handler.setFormatter(logging.Formatter(form, "%H:%M:%S"))
        handler.addFilter(lambda record: not _NOTHING.match(record.getMessage()))
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "transformers" in sys.modules:
        from transformers.utils import logging as of_transformers

        of_transformers.set_verbosity_error()
        of_transformers.disable_progress_bar()
