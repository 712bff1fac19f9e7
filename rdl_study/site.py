"""A check of the built book: every internal link, image, style and script leads somewhere."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["broken_links"]


def broken_links(folder: Path) -> list[str]:
    """References of pages that lead nowhere, as ``page: reference``; other hosts are not asked."""
    folder = folder.resolve()  # what a theme has in _static are templates, not pages
    paths = [path for path in folder.rglob("*.html") if "_static" not in path.parts]
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in paths}
    broken = set()
    for path, page in pages.items():
        for reference in page.references:
            target = urlsplit(reference)
            if target.scheme or target.netloc:
                continue
            file = (path.parent / unquote(target.path)).resolve() if target.path else path
            fragment_lost = file in pages and unquote(target.fragment) not in pages[file].ids
            if not file.is_file() or fragment_lost:
                broken.add(f"{path.relative_to(folder)}: {reference}")
    return sorted(broken)


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = {"", "top"}
        self.references: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("id", "name"):
                self.ids.add(value)
            elif value and name in ("href", "src"):
                self.references.append(value)
