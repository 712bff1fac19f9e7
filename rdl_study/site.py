"""Checks of the built book: every internal link has a target, every image and script a file."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["broken_links"]


def broken_links(folder: Path) -> list[str]:
    """Links, images, styles and scripts of a site that lead nowhere.

    Args:
        folder: Root of the built site.

    Returns:
        One line per broken reference: the page, and what it names. Other hosts are not asked.

    >>> _ = (folder / "index.html").write_text('<a href="gone.html">away</a>')
    >>> broken_links(folder)
    ['index.html: gone.html']
    """
    files = (path for path in folder.rglob("*.html") if "_static" not in path.parts)
    pages = {path.resolve(): _read(path) for path in files}  # a theme's templates are no pages
    broken = []
    for path, page in pages.items():
        for reference in page.references:
            target = urlsplit(reference)
            if target.scheme or target.netloc:
                continue
            file = (path.parent / unquote(target.path)).resolve() if target.path else path
            lost = not file.is_file()
            if target.fragment and file in pages:
                lost = unquote(target.fragment) not in pages[file].ids
            if lost:
                broken.append(f"{path.relative_to(folder.resolve())}: {reference}")
    return sorted(set(broken))


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = {"", "top"}
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("id", "name"):
                self.ids.add(value)
            elif value and name in ("href", "src"):
                self.references.append(value)


def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page
