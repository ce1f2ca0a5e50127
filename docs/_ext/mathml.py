"""Renders math as MathML while building, so that pages load nothing from elsewhere."""

from docutils import nodes
from docutils.utils.math import latex2mathml


def _inline(translator, node) -> None:
    translator.body.append(latex2mathml.tex2mathml(node.astext()))
    raise nodes.SkipNode


def _block(translator, node) -> None:
    translator.body.append(translator.starttag(node, 'div', CLASS='math'))
    translator.body.append(latex2mathml.tex2mathml(node.astext(), as_block=True))
    translator.body.append('</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer('mathml', (_inline, None), (_block, None))
    app.config.html_math_renderer = 'mathml'
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
