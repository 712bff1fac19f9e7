"""The check of the built book sees what a reader would stumble over.

Mutations seen to fail: fragments ignored; images ignored; other hosts counted.
"""

from rdl_study.site import broken_links


def site(folder, **pages):
    for name, body in pages.items():
        (folder / f"{name}.html").write_text(f"<html><body>{body}</body></html>")
    return broken_links(folder)


def test_whole_links_and_templates_of_a_theme_are_no_finding(tmp_path):
    """A build copies templates to ``_static``; their placeholders once failed the first whole build."""
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "macros.html").write_text('<script src="{{ pathto(1) }}"></script>')
    (tmp_path / "a b.png").write_bytes(b"")
    body = '<a href="two.html#here">x</a><img src="a%20b.png"><a href="https://example.org/x">y</a>'
    assert site(tmp_path, one=body, two='<p id="here"><a href="#here">up</a></p>') == []


def test_what_leads_nowhere_is_named(tmp_path):
    body = '<a href="gone.html">x</a><a href="two.html#gone">y</a><img src="gone.png">'
    assert site(tmp_path, one=body, two="") == [
        "one.html: gone.html", "one.html: gone.png", "one.html: two.html#gone",
    ]  # fmt: skip
