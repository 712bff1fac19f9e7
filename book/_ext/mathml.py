r"""Formulas as MathML, made when the book is built.

Sphinx usually hands formulas to MathJax, which a browser fetches from another host and runs. Here
`math_core` turns them into MathML once, at build time: pages need no script and no network, screen
readers can read the formulas, and what it cannot convert is a warning with file and line, which a
strict build refuses.

>>> "<mfrac>" in convert(r"\frac{a}{b}", display=True)
True
"""

from __future__ import annotations

import html
from functools import lru_cache

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

__all__ = ["convert", "setup"]

_log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def _converter() -> LatexToMathML:
    return LatexToMathML(annotation=True, fancy_error=False)


def convert(latex: str, *, display: bool) -> str:
    """MathML of a formula, with its LaTeX inside as an annotation.

    Args:
        latex: What stands between the dollar signs; a display formula may hold several lines,
            divided by two backslashes or by an empty line.
        display: Whether it stands on lines of its own.

    Raises:
        LatexError: It holds something that cannot be converted.
    """
    if display:
        latex = r" \\ ".join(part.strip() for part in latex.split("\n\n") if part.strip())
        if r"\\" in latex and not latex.lstrip().startswith(r"\begin{"):
            latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    return _converter().convert_with_local_state(latex, displaystyle=display)


def _checked(node: nodes.Node, *, display: bool) -> str:
    try:
        return convert(node.astext(), display=display)
    except LatexError as error:
        _log.warning("formula not converted: %s: %s", error, node.astext(), location=node)
        return f"<code>{html.escape(node.astext())}</code>"


def _visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(f'<span class="math notranslate">{_checked(node, display=False)}</span>')
    raise nodes.SkipNode


def _visit_display(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math notranslate"))
    # Long formulas scroll in a box of their own; tabindex lets a keyboard reach it.
    self.body.append(
        f'<div class="formula" tabindex="0">{_checked(node, display=True)}</div>'
    )
    if node.get("number"):
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def _require_use(app: Sphinx) -> None:
    if app.builder.format == "html" and app.builder.math_renderer_name != "mathml":
        raise SphinxError("expected html_math_renderer: mathml in _config.yml")


def setup(app: Sphinx) -> dict[str, object]:
    """Register the renderer with Sphinx."""
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_display, None))
    app.connect("builder-inited", _require_use)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
