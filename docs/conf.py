"""Sphinx's settings; `sphinx-build -W docs docs/_build` builds, with the notebooks as a gallery.

`LABVOICE_DOCS_EXECUTE=1` executes the notebooks first, so that the gallery has outputs.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

DOCS = Path(__file__).parent
GALLERY = DOCS / "gallery"

# Sphinx reads only what lies below it.
GALLERY.mkdir(exist_ok=True)
for notebook in (DOCS.parent / "notebooks").glob("*.ipynb"):
    shutil.copy(notebook, GALLERY)

project = "labvoice"
copyright = "the labvoice authors"  # noqa: A001  # Sphinx wants this name
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = "labvoice"
html_static_path = ["images"]
html_copy_source = False

nb_execution_mode = "force" if os.environ.get("LABVOICE_DOCS_EXECUTE") else "off"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = [
    "docutils",
    "toc.glob",
    "myst.header",
    "mystnb.unknown_mime_type",
    "config.cache",
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_use_ivar = True
