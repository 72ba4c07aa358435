"""The page of a run, in a real browser, and the text of a node."""

import asyncio
import dataclasses
import json
import re
from html import unescape

import browser
import pytest
from fakes import CharTokenizer, Sum
from shared_rollout import player

from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.credit.groups import credit
from atgrpo_jax.run import episodes, gin_config
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.saved import claim
from atgrpo_jax.viewing.contents import Kept, Pieces, by_interest, evenly, kept, shown
from atgrpo_jax.viewing.page import tree, write_page
from atgrpo_jax.viewing.text import node

HOSTILE = (
    "<script>document.title = 'mine'</script><img src=http://127.0.0.1:9/x>\u202eright to left</pre>\x1b[2J"
)

TEXTS = ["1", "2", "3"], ["10", "x", "1"]


def played(step, split, index, texts):
    made, _ = player({(t, r): texts for t in range(2) for r in "ab"}, Sum())
    return asyncio.run(made.play(step, split, index))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of made-up episodes: three training steps, and tests before and after them."""
    folder = RunFolder(tmp_path_factory.mktemp("report") / "<b>run<b>")
    with claim(folder, gin_config.load("smoke.gin")):
        pass
    alpha = {"a": 1.0, "b": 1.0}
    for step in (1, 2, 3):
        found = [played(step, "train", step * 10 + i, texts) for i, texts in enumerate(TEXTS)]
        credited, _ = credit(found, alpha=alpha, baseline="group", normalise="std")
        folder.write_episodes(step, episodes.written(step, found, credited, CharTokenizer(), alpha))
    for step, texts in ((0, ["1"] * 3), (3, ["10"] * 3)):
        found = [played(step, "test", i, texts) for i in range(2)]
        group = found[0].groups[0]
        first = dataclasses.replace(group.candidates[0], text=HOSTILE, note=HOSTILE)
        group = dataclasses.replace(group, candidates=(first, *group.candidates[1:]))
        found[0] = dataclasses.replace(found[0], groups=(group, *found[0].groups[1:]), problem=HOSTILE)
        folder.write_episodes(step, episodes.written(step, found, (), CharTokenizer(), alpha), "test")
    lines = [{"step": s, "rollout/success": s / 4, "test/success": 0.5} for s in range(4)]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_ends_of_each_split_come_first_then_what_is_between():
    files = [Kept(step, "train") for step in range(1, 10)] + [Kept(0, "test"), Kept(9, "test")]
    order = list(by_interest(files))
    assert order[:4] == [Kept(9, "train"), Kept(9, "test"), Kept(1, "train"), Kept(0, "test")]
    assert [file.step for file in order[4:]] == [5, 3, 7, 2, 4, 6, 8]
    assert list(by_interest([])) == [] and list(by_interest(files[:1])) == files[:1]


@pytest.mark.parametrize(("count", "most", "chosen"), [(3, 5, [0, 1, 2]), (10, 4, [0, 2, 5, 7]), (0, 4, [])])
def test_samples_are_even(count, most, chosen):
    assert evenly(count, most) == chosen


def test_tokens_are_told_apart_where_they_make_the_text(folder):
    (episode, *_) = folder.read_episodes(1)
    candidate = shown(episode, Pieces(CharTokenizer()))["groups"][0]["candidates"][1]
    assert candidate["pieces"] == ["2", ""] and "tokens" not in candidate
    episode["groups"][0]["candidates"][1]["text"] = "two"
    assert "pieces" not in shown(episode, Pieces(CharTokenizer()))["groups"][0]["candidates"][1]
    assert "pieces" not in shown(episode, None)["groups"][0]["candidates"][0]


def test_a_page_keeps_to_its_size_and_says_so(folder, tmp_path):
    assert len(kept(folder)) == 5
    assert write_page(folder, tmp_path / "all.html") == ["train-3", "test-3", "train-1", "test-0", "train-2"]
    assert write_page(folder, tmp_path / "one.html", most_mb=1e-6) == ["train-3"]
    assert write_page(folder, tmp_path / "two.html", steps=(1, 2)) == ["train-2", "train-1"]


def test_nothing_of_a_run_can_leave_its_place_in_the_page(folder, tmp_path):
    write_page(folder, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<title>&lt;b&gt;run&lt;b&gt; - atgrpo_jax</title>" in page
    data = re.findall(r'<script type="text/plain" id="[\w-]+">(.*?)</script>', page, re.DOTALL)
    assert len(data) == 6 and all(re.fullmatch(r"[A-Za-z0-9+/=]+", part) for part in data)


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium")
def test_a_person_clicks_through_it(folder, tmp_path):
    write_page(folder, tmp_path / "page.html")
    asyncio.run(_click_through(tmp_path / "page.html"))


async def _click_through(path):
    async with browser.opened(path) as page:
        texts = "[...document.querySelectorAll({})].map((e) => e.textContent)"

        async def all_of(selector):
            return await page.run(texts.format(json.dumps(selector)))

        async def choose(name, value):
            script = f"$({json.dumps(name)}).value = {json.dumps(value)}; $({json.dumps(name)}).onchange()"
            await page.run(f"(async () => {{ {script}; await new Promise((r) => setTimeout(r, 50)); }})()")

        assert await all_of("h1") == ["<b>run<b>"]
        assert (await all_of(".panel h3"))[0] == "Success"
        assert await page.run("$('file').value") == "train-3"
        assert "5 of the run's 5 files" in (await all_of("#sample"))[0]
        # The best of 1, 2 and 3 four times is 12: instance 30 is beyond 10. Instance 31 is there at once.
        assert [line.split(" ", 3)[:3] for line in await all_of("#list li")] == [
            ["instance", "30", "ended2"], ["instance", "31", "solved1"],
        ]  # fmt: skip
        await choose("end", "solved")
        assert len(await all_of("#list li")) == 1 and "instance 31" in (await all_of(".tree h3"))[0]
        assert (await all_of(".candidate.executed .what b")) == ["0 executed"]
        await choose("end", "")
        await choose("outcome", "invalid")
        assert ["instance 31" in line for line in await all_of("#list li")] == [True]
        await choose("outcome", "")
        await choose("signal", "none")
        assert await all_of("#list li") == []
        await choose("signal", "")
        # A click on a step opens it.
        await page.run("document.querySelector('#table tbody tr:nth-child(3)').click()")
        await page.run("new Promise((r) => setTimeout(r, 200))")
        assert await page.run("$('file').value") == "train-1"
        # The same test instance before and after, and what it says is text.
        await choose("file", "test-0")
        await page.run("new Promise((r) => setTimeout(r, 200))")
        await page.run("document.querySelector('.tree button').click()")
        await page.run("new Promise((r) => setTimeout(r, 200))")
        heads = await all_of(".tree h3")
        assert [("step 0" in head, "step 3" in head) for head in heads] == [(True, False), (False, True)]
        assert HOSTILE in (await all_of(".candidate pre"))[0]
        assert await page.run("document.title") == "<b>run<b> - atgrpo_jax"
        assert await page.run("document.querySelectorAll('img').length") == 0
        assert page.requested == [path.as_uri()] and page.errors == []


def test_an_episode_in_a_notebook(folder):
    drawn = tree(folder.path, 3, 31)
    assert drawn.data["end"] == "solved" and drawn.data["groups"][0]["candidates"][0]["text"] == "10"
    page = drawn._repr_html_()
    assert page.startswith('<iframe srcdoc="&lt;!doctype html&gt;') and page.count("<") == 2
    for wrong in ({"step": 9}, {"instance": 7}, {"episode": 1}):
        with pytest.raises(RunError, match="no episode"):
            tree(folder.path, **{"step": 3, "instance": 31} | wrong)


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium")
def test_a_notebook_shows_that_episode_alone(folder, tmp_path):
    html = tree(folder.path, 0, 0, "test")._repr_html_()
    page = re.search('srcdoc="(.*?)"', html, re.DOTALL)[1]
    (tmp_path / "cell.html").write_text(unescape(page))

    async def look():
        async with browser.opened(tmp_path / "cell.html") as opened:
            shown = "[...document.querySelectorAll('.candidate')].filter((e) => e.offsetParent).length"
            assert await opened.run(shown) == 12
            assert await opened.run("$('curves').offsetParent") is None
            assert opened.errors == []

    asyncio.run(look())


def test_a_node_as_text(folder):
    whole = node(folder, "3/train/31")
    assert whole.startswith(
        "train, step 3, instance 31, episode 0: solved after 1 turns\n\n== turn 0, stage 0, a"
    )
    assert "-- candidate 0, executed: ok\n   reward 11 (team 1, local 10: number 10)\n" in whole
    assert "-- candidate 1: invalid" in whole
    assert node(folder, "3/train/30/0/1/1/b").count("==") == 1
    assert "\x1b" not in node(folder, "0/test/0") and "\\x1b[2J" in node(folder, "0/test/0")


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("3", ConfigError, "'3' is no node; expected STEP/SPLIT/INSTANCE"),
        ("3/train/x", ConfigError, "is no node"),
        ("9/train/1", RunError, "no episodes of train in step 9 are kept"),
        ("3/train/1", RunError, "has no instance 1; it has 30 to 31"),
        ("3/train/31/0/5", RunError, "has nothing at 3/train/31/0/5"),
    ],
)
def test_a_node_that_there_is_not(folder, name, error, says):
    with pytest.raises(error, match=re.escape(says)):
        node(folder, name)
