"""Sphinx configuration; build with ``sphinx-build -W docs docs/_build``."""

import ovtensor

project = "ovtensor"
author = "the ovtensor maintainers"
release = ovtensor.__version__
extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
numpydoc_show_class_members = False
autodoc_typehints = "none"
myst_heading_anchors = 3
