"""The check of the built book sees what a reader would stumble over."""

from rdl_study.site import broken_links


def test_what_leads_nowhere_is_named_and_templates_of_a_theme_are_no_finding(tmp_path):
    """A build copies templates to ``_static``; their placeholders once failed the first whole build."""
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "macros.html").write_text('<script src="{{ pathto(1) }}"></script>')
    (tmp_path / "a b.png").write_bytes(b"")
    whole = '<a href="two.html#here">x</a><img src="a%20b.png"><a href="https://example.org/x">y</a>'
    broken = '<a href="gone.html">x</a><a href="two.html#gone">y</a><img src="gone.png">'
    for name, body in (("one", whole + broken), ("two", '<p id="here"><a href="#here">up</a></p>')):
        (tmp_path / f"{name}.html").write_text(f"<html><body>{body}</body></html>")
    nowhere = ("gone.html", "gone.png", "two.html#gone")
    assert broken_links(tmp_path) == [f"one.html: {name}" for name in nowhere]
