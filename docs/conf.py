"""Builds the documentation: `pip install -e ".[docs]" && sphinx-build -W -n docs docs/_build`."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'docs/_ext')]

import jdkd  # noqa: E402

project = 'jdkd'
author = 'The jdkd authors'
copyright = author
version = release = jdkd.__version__

extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
    'mathml',
    'reference_tables',
]
exclude_patterns = ['_build', '_ext']

myst_enable_extensions = ['attrs_inline', 'colon_fence', 'deflist', 'dollarmath']
myst_heading_anchors = 3
nb_execution_mode = 'off'  # The notebook is executed when its outputs are committed.

autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Only the public API has a page, and the build makes no requests to find other projects' pages.
nitpick_ignore_regex = [
    (r'py:.*', r'(?!jdkd\.).*'),
    (r'py:.*', r'jdkd\.(models|tokens|config)\..*'),
]

highlight_language = 'text'
smartquotes = False  # Or two dashes of a flag become one.

html_theme = 'furo'
html_title = f'jdkd {release}'
html_static_path = ['_static']
html_css_files = ['custom.css']
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    'light_css_variables': {
        'color-brand-primary': '#0b5394',
        'color-brand-content': '#0b5394',
    },
    'dark_css_variables': {
        'color-brand-primary': '#7db4e6',
        'color-brand-content': '#7db4e6',
    },
}

copybutton_exclude = '.linenos, .gp, .go'
linkcheck_ignore = [r'https?://.*']  # Local links alone; others depend on the network.
