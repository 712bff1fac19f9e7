"""Progress that fits where it is shown: a bar on a terminal, plain lines elsewhere.

>>> list(progress([1, 2, 3], total=3, what="counting"))
[1, 2, 3]
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm
from transformers.utils import logging as transformers_logging

__all__ = ["log_plainly", "progress"]

_LINE_EVERY_S = 15.0
_SILENT_S = 2.0  # work that took no longer is not worth a line
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


def progress(items: Iterable[_T], *, total: int, what: str, done: int = 0) -> Iterator[_T]:
    """Pass `items` through and show how far they are.

    Args:
        items: What is worked on.
        total: How many there are in all, those already done included.
        what: A few words that say what is being done.
        done: How many were done before, by a run that this one resumes.

    Returns:
        The items, one by one.

    >>> sum(progress(range(4), total=4, what="adding"))
    6
    """
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, initial=done, desc=what, dynamic_ncols=True)
        return
    started = said = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - said >= _LINE_EVERY_S:
            left_s = (now - started) / count * (total - done - count)
            _log.info("%s: %d of %d, about %.0f s left", what, done + count, total, left_s)
            said = now
    if (took := time.monotonic() - started) > _SILENT_S:
        _log.info("%s: %d done in %.0f s", what, total, took)


def log_plainly() -> None:
    """Show the messages of this package, and of notebooks that it runs, on standard error.

    For programs and notebooks to call once; a library never configures logging by being imported.

    >>> log_plainly()
    >>> logging.getLogger("rdl_core").level == logging.INFO
    True
    """
    for name, form in (("rdl_core", "%(asctime)s %(message)s"), ("papermill", "%(message)s")):
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(form, "%H:%M:%S"))
        logger = logging.getLogger(name)
        handler.addFilter(lambda record: not _of_cells(record.getMessage()))
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _of_cells(message: str) -> bool:
    """Whether papermill only says that a cell starts or ends."""
    return not message.strip() or message.startswith(("Executing Cell", "Ending Cell"))
