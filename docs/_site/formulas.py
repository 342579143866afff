"""Formulas become MathML while the site is built: browsers show it without a script."""

import html
import re

from latex2mathml.converter import convert

# What pymdownx.arithmatex makes of $...$ and $$...$$.
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
_BLOCK = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.S)


def on_page_content(content, page, config, files):
    """MkDocs calls it with the HTML of a page."""
    content = _INLINE.sub(lambda found: convert(html.unescape(found[1])), content)
    return _BLOCK.sub(lambda found: _block(html.unescape(found[1].strip())), content)


def _block(formula):
    # A reader with a keyboard scrolls what is wider than a telephone.
    mathml = convert(formula, display="block")
    return f'<div class="formula" tabindex="0" role="group" aria-label="formula">{mathml}</div>'
