"""Names that a screen reader gives to the theme's buttons, made to agree with what is seen.

The theme and its extensions label some elements otherwise than their visible text, or give a list
children that are no items; axe-core counts both as serious. Each is taken out of the built pages.

>>> corrected('<div role="list" class="citation-list">')
'<div class="citation-list">'
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

__all__ = ["corrected", "setup"]

_CORRECTIONS = (
    (r'(<summary) aria-label="Toggle hidden content"', r"\1"),  # the text says "Code"
    (r'(<button class="btn search-button-field[^>]*?) aria-label="Search"', r"\1"),
    (r'(<i class="theme-switch [^>]*?) +title="[^"]*"', r"\1"),  # read beside the button's own
    (r'<div role="list" class="citation-list">', '<div class="citation-list">'),
    # A signature of several lines is a list of definitions without a term.
    (r'<dl>(\s*<dd><em class="sig-param">)', r'<dl role="presentation">\1'),
    (r'<dd>(<em class="sig-param">)', r'<dd role="presentation">\1'),
    # It scrolls at a phone's width, and so must take the keyboard.
    (r'(<figure [^>]*id="fig-main-result")>', r'\1 tabindex="0">'),
)


def corrected(page: str) -> str:
    """The HTML of a page without labels that disagree with what is seen.

    Args:
        page: HTML as the theme made it.
    """
    for wrong, right in _CORRECTIONS:
        page = re.sub(wrong, right, page)
    return page


def _correct(app: Sphinx, failed: Exception | None) -> None:
    if failed or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        if "_static" not in path.parts:
            path.write_text(corrected(path.read_text(encoding="utf-8")), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, object]:
    """Correct the pages when all of them are written."""
    app.connect("build-finished", _correct)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
