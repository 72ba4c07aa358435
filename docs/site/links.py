"""Looks at the links of this project's Markdown files and notebooks, as they lie in the checkout.

    python docs/site/links.py

Says which links lead nowhere in the checkout (the exit code is 1 then), and lists those to other
places. Nothing is asked of the network.
"""

import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
MARKDOWN = MarkdownIt("commonmark").enable("table")


def texts(root: Path) -> dict[Path, str]:
    """Returns the Markdown of all pages and notebooks that people read, by file."""
    found = {path: path.read_text() for path in [*root.glob("*.md"), *root.glob("docs/**/*.md")]}
    for path in root.glob("docs/**/*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown"]
        found[path] = "\n\n".join("".join(cell["source"]) for cell in cells)
    return dict(sorted(found.items()))


def links(text: str) -> Iterator[str]:
    """Yields the targets of the links and images of a text."""
    for block in MARKDOWN.parse(text):
        for token in block.children or []:
            target = token.attrGet("href") or token.attrGet("src")
            if target:
                yield str(target)


def anchors(text: str) -> set[str]:
    """Returns the anchors of the headings of a text, as GitHub makes them."""
    found: set[str] = set()
    blocks = MARKDOWN.parse(text)
    for block, after in itertools.pairwise(blocks):
        if block.type == "heading_open":
            title = "".join(token.content for token in after.children or [])
            name = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            again = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in found)
            found.add(f"{name}-{again}" if again else name)
    return found


def look(root: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Returns a line for each link that leads nowhere, and the files of each link to other places."""
    pages = texts(root)
    broken: list[str] = []
    elsewhere: dict[str, list[str]] = {}
    for path, text in pages.items():
        name = path.relative_to(root).as_posix()
        for link in links(text):
            parts = urlsplit(link)
            if parts.scheme:
                elsewhere.setdefault(link, []).append(name)
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                broken.append(f"{name}: {link}: no such file")
            elif not target.is_relative_to(root.resolve()):
                broken.append(f"{name}: {link}: it is outside of the checkout")
            elif parts.fragment and parts.fragment not in anchors(pages.get(target, "")):
                broken.append(f"{name}: {link}: no such heading")
    return broken, dict(sorted(elsewhere.items()))


if __name__ == "__main__":
    broken, elsewhere = look(ROOT)
    for link, names in elsewhere.items():
        print(link, *sorted(set(names)))
    print(*broken, sep="\n", file=sys.stderr, end="\n" * bool(broken))
    sys.exit(bool(broken))
