"""The documentation: links lead somewhere, all public names have a place, and the site is whole and alone."""

import asyncio
import dataclasses
import enum
import os
import re
import runpy
import signal
import subprocess
import sys
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import browser
import pytest

import atgrpo_jax

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "site"
LINKS = SimpleNamespace(**runpy.run_path(str(SITE / "links.py")))
FIELDS = SimpleNamespace(**runpy.run_path(str(SITE / "fields.py")))


# Markdown as it lies in the checkout


def test_all_links_of_the_checkout_lead_somewhere():
    broken, elsewhere = LINKS.look(ROOT)
    assert broken == []
    assert all(link.startswith("https://") for link in elsewhere)
    read = {path.relative_to(ROOT).as_posix() for path in LINKS.texts(ROOT)}
    assert {"README.md", "docs/tpu.md", "docs/quickstart.ipynb", "docs/site/site.md"} <= read


def test_links_that_lead_nowhere_are_named(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(
        "# A `b_c` & d, e\n\n## Same\n\n## Same\n\n"
        "[a](docs/a.md#here) [b](#a-b_c--d-e) [c](#same-1) ![d](docs/none.png) [e](../x.md) [f](https://x.y)\n"
        "\n    [code](no-link.md)\n"
    )
    (tmp_path / "docs" / "a.md").write_text("# There\n\n| [t](../README.md#same-2) |\n|---|\n| <b@c.de> |\n")
    (tmp_path.parent / "x.md").touch()
    broken, elsewhere = LINKS.look(tmp_path)
    assert broken == [
        "README.md: docs/a.md#here: no such heading",
        "README.md: docs/none.png: no such file",
        "README.md: ../x.md: it is outside of the checkout",
        "docs/a.md: ../README.md#same-2: no such heading",
    ]
    assert elsewhere == {"https://x.y": ["README.md"], "mailto:b@c.de": ["docs/a.md"]}


# The reference


def test_every_public_name_is_in_the_reference_once():
    pages = "".join(path.read_text() for path in sorted((SITE / "api").glob("*.rst")))
    named = re.findall(r"^\.\. auto\w+:: atgrpo_jax\.(\w+)$", pages, re.MULTILINE)
    assert sorted(named) == sorted(atgrpo_jax.__all__)


class Kind(enum.Enum):
    ONE = "one"  # the first
    TWO = "two"


@dataclasses.dataclass(frozen=True)
class Base:
    # Not of a field: an empty line follows.

    # Above it, in
    # two lines.
    a: int
    b: tuple[str, ...] = (
        "x",  # within *it*
    )  # fmt: skip
    hidden: int = dataclasses.field(init=False, default=0)


@dataclasses.dataclass(frozen=True)
class Own(Base):
    b: tuple[str, ...] = ()
    c: "Kind | None" = None  # as ``Kind.ONE`` | such


def test_fields_are_listed_as_the_code_has_them():
    assert FIELDS.listed(Base) == [
        "",
        "* ``a: int``", "  -- Above it, in two lines.",
        "* ``b: tuple[str, ...] = ('x',)``", r"  -- within \*it\*",
        "",
    ]  # fmt: skip
    assert FIELDS.listed(Own)[1:-1] == [
        "* ``a: int``", "  -- Above it, in two lines.",
        "* ``b: tuple[str, ...] = ()``",
        "* ``c: 'Kind | None' = None``", r"  -- as ``Kind.ONE`` \| such",
    ]  # fmt: skip
    assert FIELDS.listed(Kind)[1:-1] == ["* ``ONE = 'one'``", "  -- the first", "* ``TWO = 'two'``"]
    assert FIELDS.names_of(3) == FIELDS.names_of(int) == []


def test_columns_of_a_docstring_become_a_block():
    lines = ["A text.", "", "one  a word", "     and more", "", "The end."]
    block = [".. code-block:: none", "", "   one  a word", "        and more"]
    assert FIELDS.with_columns(lines) == ["A text.", "", *block, "", "The end."]


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as launch/docs.sh builds it, with what the environment of the tests has installed."""
    folder = tmp_path_factory.mktemp("docs")
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    given = (ROOT / "setup.py").read_bytes()
    sum_of = subprocess.run(["cksum"], input=given, capture_output=True, check=True).stdout.decode().strip()
    (folder / "venv" / ".atgrpo").write_text(f"{ROOT} {sum_of} [docs]\n")
    out = folder / "site"
    with open(folder / "errors", "w+") as errors:
        process = subprocess.Popen(
            ["bash", ROOT / "launch" / "docs.sh", f"--out={out}", "--serve=0"], start_new_session=True,
            env=os.environ | {"ATGRPO_VENV": str(folder / "venv"), "PYTHONUNBUFFERED": "1"},
            cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        try:
            said = [process.stdout.readline(), process.stdout.readline()]
            errors.seek(0)
            assert said[0] == f"{out / 'index.html'}\n", errors.read()
            (port,) = re.findall(r"port (\d+)", said[1])
            with urllib.request.urlopen(f"http://localhost:{port}/", timeout=60) as answer:
                assert b"README.html" in answer.read()
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=60)
    assert {path.name for path in folder.iterdir()} == {"venv", "site", "errors"}
    return out


class Page(HTMLParser):
    """What a page links to, what it loads, and the anchors that it has."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.anchors, self.texts = [], [], set(), []
        self._in = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self._in = tag
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given["rel"] not in ("next", "prev", "index", "search"):
            self.loads.append(given["href"])
        self.loads += [given[name] for name in ("src", "srcset", "data", "poster") if given.get(name)]
        if tag == "meta" and given.get("http-equiv") == "refresh":
            self.links.append(given["content"].partition("url=")[2])
        self.texts += [given["style"]] if "style" in given else []

    def handle_data(self, data):
        if self._in in ("style", "script"):
            self.texts.append(data)

    def handle_endtag(self, tag):
        self._in = ""


@pytest.mark.slow
def test_all_links_of_the_site_lead_somewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 35
    count = 0
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if not parts.scheme:  # others are not asked
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                assert target.is_file() and target.is_relative_to(site), f"{path}: {link}"
                assert not parts.fragment or parts.fragment in pages[target].anchors, f"{path}: {link}"
                count += 1
    assert count > 1000


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site):
    texts = {}
    for path in site.rglob("*.html"):
        page = Page(path)
        assert [load for load in page.loads if re.match(r"(\w+:)?//", load)] == [], path
        texts[path] = "\n".join(page.texts)
    texts |= {path: path.read_text() for path in [*site.rglob("*.css"), *site.rglob("*.js")]}
    place = r"(https?:)?//[\w.]"
    asked = rf"""@import|url\(\s*["']?{place}|(fetch|import|open|src|href)\W{{1,4}}["'`]{place}"""
    assert re.search(asked, "x.src = 'https://a.b/c.js'") and re.search(asked, "url(//a.b/c.woff)")
    for path, text in texts.items():
        assert not re.search(asked, text), path


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_it_without_network(site):
    async def errors(name, ready, query=""):
        async with browser.opened(site / name, query, ready) as page:
            assert all(address.startswith(("file:", "data:")) for address in page.requested)
            return page.errors

    start = "document.querySelector('h1')?.innerText.startsWith('atgrpo_jax')"
    assert asyncio.run(errors("index.html", start)) == []
    picture = "document.querySelector('article img')?.naturalWidth > 100"
    assert asyncio.run(errors("docs/results.html", picture)) == []
    found = "document.querySelector('#search-results li')?.innerText.includes('Sudoku')"
    asyncio.run(errors("search.html", found, "?q=sudoku"))  # a file may not read others, to show excerpts


@pytest.mark.slow
def test_the_reference_has_fields_and_methods(site):
    text = (site / "docs" / "site" / "api" / "runs.html").read_text()
    assert "checkpoint_every" in text and "how many of the newest are kept" in text
    assert re.search(r'id="atgrpo_jax\.train_team"', text)


def test_a_word_that_the_script_does_not_know_is_named():
    done = subprocess.run(
        ["bash", ROOT / "launch" / "docs.sh", "--port"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "") and "'--port' is none of" in done.stderr
