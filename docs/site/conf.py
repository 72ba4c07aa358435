"""Settings of Sphinx, which makes the documentation site of this checkout. launch/docs.sh calls it.

The pages are the Markdown files as they lie in the checkout, so that their links work there, too.
"""

import json
import runpy
import sys
from pathlib import Path

from myst_parser.parsers.sphinx_ import MystParser

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]  # what is documented is this checkout

# The order of the pages, and the headings that they stand under. README is the first page.
NAVIGATION = {
    "Start": ("docs/quickstart", "docs/tour", "docs/features", "BUILD"),
    "Tasks": (
        "docs/your-task", "docs/data", "docs/environments", "docs/search", "docs/maker-checker",
        "docs/split-sight", "docs/sandbox",
    ),
    "Teams": ("docs/workflows", "docs/partners"),
    "Looking": (
        "docs/report", "docs/metrics", "docs/ledger", "docs/influence", "docs/replay", "docs/episodes",
        "docs/trackers", "docs/studies",
    ),
    "Training": (
        "docs/config", "docs/curriculum", "docs/branching", "docs/overlap", "docs/models", "docs/forks",
        "docs/moving", "docs/sglang",
    ),
    "Parts of your own": ("docs/your-credit", "docs/your-loss", "docs/your-engine"),
    "Machines": ("docs/probe", "docs/tpu", "docs/hosts", "docs/container", "docs/performance"),
    "Results": ("docs/results", "docs/paper", "docs/parity", "docs/log"),
    "Python interface": (
        "docs/site/api/runs", "docs/site/api/teams", "docs/site/api/tasks", "docs/site/api/models",
        "docs/site/api/updates",
    ),
    "Design": ("docs/code", "docs/design", "CONTRIBUTING", "AGENTS", "docs/site/site", "CHANGELOG"),
}  # fmt: skip

project = "atgrpo_jax"
release = runpy.run_path(str(ROOT / "atgrpo_jax" / "version.py"))["__version__"]
root_doc = "README"
source_suffix = {".md": "markdown", ".rst": "restructuredtext", ".ipynb": "notebook"}
include_patterns = ["*.md", "docs/**"]
extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.githubpages", "fields",
]  # fmt: skip
myst_heading_anchors = 4  # links to headings are made as GitHub makes them
highlight_language = "none"  # blocks that do not name a language are commands or files
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
html_show_copyright = False
html_extra_path = ["index.html"]


class NotebookParser(MystParser):
    """Reads a notebook as a page: its text as Markdown, its code as blocks."""

    supported = ("notebook",)

    def parse(self, inputstring, document):
        cells = json.loads(inputstring)["cells"]
        texts = (("".join(cell["source"]), cell["cell_type"]) for cell in cells)
        parts = [f"```python\n{text}\n```" if kind == "code" else text for text, kind in texts]
        super().parse("\n\n".join(parts), document)


def add_navigation(app, docname, source):
    if docname == root_doc:
        for heading, pages in NAVIGATION.items():
            listed = "\n".join(f"/{page}" for page in pages)
            source[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{listed}\n```\n"


def setup(app):
    app.add_source_parser(NotebookParser)
    app.connect("source-read", add_navigation)
