"""Progress of long work, and messages on standard error."""

import atexit
import gc
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

__all__ = ["progress", "set_up_process"]

_NOTHING = re.compile(r"\s*$|(Executing|Ending) Cell")  # papermill's lines around cells
_T = TypeVar("_T")


def progress(items: Iterable[_T], *, total: int, what: str, done: int = 0) -> Iterator[_T]:
    """Pass items on and show how far `what` is: `total` counts those `done` by an earlier run, too."""
    quiet_s = 0 if sys.stderr.isatty() else 30  # a line now and then, none of short work
    pace = {"mininterval": max(quiet_s, 0.1), "maxinterval": max(quiet_s, 10), "delay": quiet_s}
    yield from tqdm(items, total=total, initial=done, desc=what, dynamic_ncols=True, **pace)


def set_up_process() -> None:
    """For a command or a notebook: show messages on standard error, and seldom collect garbage."""
    # torch and transformers make a million objects that stay. Looking through them for garbage, most of
    # all at exit, took a third of a short command's time.
    gc.set_threshold(100_000, 20, 100)
    atexit.register(gc.freeze)
    for name in ("rdl_core", "rdl_tools", "rdl_study", "papermill"):
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
