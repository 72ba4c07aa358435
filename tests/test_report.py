"""The page of a run, in a real browser, and the text of a node."""

import asyncio
import dataclasses
import gzip
import json
import re
import shutil
from html import unescape

import browser
import pytest
from fakes import CharTokenizer, Sum
from shared_rollout import player

from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.files import append_json_line
from atgrpo_jax.credit.groups import CreditConfig, credit
from atgrpo_jax.run import episodes, gin_config
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.saved import claim
from atgrpo_jax.viewing.contents import Kept, Pieces, by_interest, evaluations, evenly, kept, shown
from atgrpo_jax.viewing.meanings import meaning_of
from atgrpo_jax.viewing.page import Writer, tree, write_page
from atgrpo_jax.viewing.text import episode_text, node

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
        credited, _, _ = credit(found, alpha=alpha, rule=CreditConfig("group", "std"))
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
    shares = []
    assert write_page(folder, tmp_path / "one.html", most_mb=1e-6, on_file=shares.append) == ["train-3"]
    assert shares == [1.0]
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
        all_of, choose = page.all_of, page.choose
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
        await page.run("document.querySelector('.tree button').click()")
        await page.run("new Promise((r) => setTimeout(r, 200))")
        heads = await all_of(".tree h3")
        assert [("step 0" in head, "step 3" in head) for head in heads] == [(True, False), (False, True)]
        assert HOSTILE in (await all_of(".candidate pre"))[0]
        assert await page.run("document.title") == "<b>run<b> - atgrpo_jax"
        assert await page.run("document.querySelectorAll('img').length") == 0
        assert page.requested == [path.as_uri()] and page.errors == []


@pytest.fixture
def later(folder, tmp_path):
    """A copy of the run, and a way to evaluate it once more: as ``evaluate`` leaves it."""
    shutil.copytree(folder.path, tmp_path / "later")
    copy = RunFolder(tmp_path / "later")

    def evaluate(step, text, split="test", **more):
        found = [played(step, split, i, [text] * 3) for i in range(2)]
        content = episodes.written(step, found, (), CharTokenizer(), {"a": 1.0, "b": 1.0})
        name = f"evaluations/{copy.write_evaluation(split, content)}"
        append_json_line(copy.evaluations, {"step": step, "split": split, "episodes": name, **more})

    return copy, evaluate


def test_later_evaluations_are_files_like_others(later, tmp_path):
    folder, evaluate = later
    append_json_line(folder.evaluations, {"step": 0, "split": "test"})  # of a version that kept no episodes
    evaluate(3, "5", temperature=0.0, gin_param=["math.Math.files = {}"])
    evaluate(0, "7", "train", sampling={"a": {}, "b": {}})
    assert [file.title for file in evaluations(folder)] == [
        "test, step 3, evaluation 1 at temperature 0, with another math.Math.files",
        "train, step 0, evaluation 1",
    ]
    writer = Writer(folder, tmp_path / "page.html")
    names = writer.write()
    # The newest one comes after the newest of each split.
    assert names[:3] == ["train-3", "test-3", "train-0-evaluation1"] and len(names) == 7
    assert names[-1] == "train-2" and "test-3-evaluation1" in names
    evaluate(3, "6")  # while somebody watches
    assert writer.write()[2:4] == ["test-3-evaluation2", "train-1"]
    assert write_page(folder, tmp_path / "one.html", steps=(0,)) == ["test-0", "train-0-evaluation1"]
    (folder.evaluated / "0001_test.jsonl.gz").unlink()
    assert [file.name for file in evaluations(folder)] == ["train-0-evaluation1", "test-3-evaluation2"]


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium")
def test_later_evaluations_are_chosen_like_others(later, tmp_path):
    folder, evaluate = later
    evaluate(3, "5", temperature=0.0)
    evaluate(3, "6", "train")
    writer = Writer(folder, tmp_path / "page.html")
    writer.write(reload_s=3.0)

    async def look():
        async with browser.opened(tmp_path / "page.html") as page:
            titles = [
                "test, step 0", "test, step 3", "test, step 3, evaluation 1 at temperature 0",
                "train, step 1", "train, step 2", "train, step 3", "train, step 3, evaluation 1",
            ]  # fmt: skip
            await page.run("touched = Infinity")  # a person is busy
            assert await page.all_of("#file option") == titles
            assert await page.run("$('file').value") == "train-3"  # and not the later one
            await page.run("document.querySelector('#table tbody tr:nth-child(1)').click()")
            await page.run("new Promise((r) => setTimeout(r, 200))")
            assert await page.run("$('file').value") == "train-3"
            await page.choose("file", "test-3-evaluation1")
            assert "evaluation 1 at temperature 0: 2 of 2 episodes" in (await page.all_of("#sample"))[0]
            await page.run("document.querySelector('#list li:nth-child(2)').click()")
            assert await page.all_of(".tree h3 span:first-child") == [
                "test, step 3, evaluation 1, instance 1: "
            ]
            await page.run("document.querySelector('.tree button').click()")
            await page.until("document.querySelectorAll('.tree').length === 3")
            heads = await page.all_of(".tree h3 span:first-child")
            assert [head.split(", ")[1:-1] for head in heads] == [
                ["step 0"],
                ["step 3"],
                ["step 3", "evaluation 1"],
            ]
            # One that comes while a person watches is there after the page has loaded itself.
            await asyncio.to_thread(evaluate, 3, "9")  # which has an event loop of its own
            writer.write()
            await page.run("touched = 0")
            await page.until(f"{browser.READY} && contents.files.length === 8")
            assert await page.run("$('file').value") == "test-3-evaluation1"
            assert (await page.all_of(".tree h3"))[2].startswith("test, step 3, evaluation 1, instance 1: ")
            await page.choose("file", "test-3-evaluation2")
            assert (await page.all_of(".candidate pre"))[0] == "9"
            assert page.errors == []

    asyncio.run(look())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A run of one episode whose states are drawn, and of whose tokens it is said what was taught."""
    folder = RunFolder(tmp_path_factory.mktemp("drawn") / "run")
    with claim(folder, gin_config.load("smoke.gin")):
        pass
    made, _ = player({(t, r): ["1", "3"] for t in range(2) for r in "ab"}, Drawing(), k=2)
    episode = asyncio.run(made.play(1, "train", 0))
    credited, _, _ = credit([episode], alpha={"a": 1.0, "b": 1.0}, rule=CreditConfig("group", "std"))
    content = episodes.written(1, [episode], credited, CharTokenizer(), {"a": 1.0, "b": 1.0})
    record = json.loads(gzip.decompress(content))
    first, second = record["groups"][0]["candidates"]
    first["taught"] = {"after": [-3.0, -1.0], "weight": [-0.5, -0.25]}
    second["taught"] = {"after": [-0.5, -1.0], "weight": [1.0, 0.0]}
    folder.write_episodes(1, gzip.compress(json.dumps(record).encode()))
    lines = [{"step": s, "rollout/success": 0.5} | {f"role/{r}/team": s for r in ROLES} for s in range(6)]
    lines[2] |= {"role/a%2Fb/influence": 0.25, "role/a%2Fb/influence/on/c": 0.5}
    lines[2] |= {"role/a%2Fb/signal": 0.25, "role/c/repeats/a%2Fb": 0.5, "role/c/first/signal": 0.5}
    for step, ends in enumerate([{"solved": 0.5, "ended": 0.5}, {"ended": 1.0}], 1):
        lines[step] |= {f"end/{end}": share for end, share in ends.items()}
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


ROLES = [f"role{i}" for i in range(12)]


def says(name):
    return meaning_of(name).says


class Drawing(Sum):
    """Draws hostile things, too."""

    def drawn(self, state):
        if len(state) == 3:
            return HOSTILE
        return [["wall", "agent", "given 7"], ["", HOSTILE], [f"x {HOSTILE}", f"filled {sum(state)}"]]


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium")
def test_boards_are_drawn_and_what_they_say_is_text(drawn, tmp_path):
    write_page(drawn, tmp_path / "page.html")

    async def look():
        async with browser.opened(tmp_path / "page.html") as page:
            first = ".group:nth-of-type(1) figure:nth-of-type({}) td"
            cells = await page.all_of(first.format(1))
            assert cells[:4] == ["#", "@", "7", ""] and cells[-1] == "0"
            assert cells[4] == HOSTILE[:32].partition(" ")[2] and cells[5] == HOSTILE[:30]
            kinds = f"[...document.querySelectorAll('{first.format(1)}')].map((e) => e.className)"
            assert await page.run(kinds) == [
                "cell is-wall", "cell is-agent", "cell is-given", "gap", "cell", "cell", "cell is-filled",
            ]  # fmt: skip
            assert await page.all_of(".group:nth-of-type(1) figure:nth-of-type(2) .changed") == ["3"]
            assert await page.all_of(".group:nth-of-type(1) figcaption") == ["state", "then"]
            # The third number makes the board a text; the fourth one is the end.
            assert HOSTILE in await page.all_of("figure pre.drawn")
            assert (await page.all_of("figcaption"))[-1] == "at the end"
            assert await page.run("document.querySelectorAll('img, figure script').length") == 0
            assert await page.run("document.title") == "run - atgrpo_jax"
            assert page.requested == [(tmp_path / "page.html").as_uri()] and page.errors == []

    asyncio.run(look())


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium")
def test_tokens_are_shaded_by_what_the_update_did(drawn, folder, tmp_path):
    write_page(drawn, tmp_path / "page.html")
    write_page(folder, tmp_path / "other.html")
    colours = (
        "[...document.querySelectorAll('.group:nth-of-type(1) pre span')].map((e) => e.style.background)"
    )

    async def look():
        async with browser.opened(tmp_path / "page.html") as page:
            # All logprobs were -1. So the changes are -2 and 0.5; the stop token is no text.
            assert await page.run(colours) == ["rgba(234, 138, 0, 0.14)"] * 2
            await page.choose("shade", "change")
            assert await page.run(colours) == ["rgba(203, 36, 23, 0.7)", "rgba(26, 140, 60, 0.176)"]
            head = (await page.all_of(".group h4"))[0]
            assert "full colour is a change of logprob of 2" in head
            # exp(-2) before, exp(-1.5) after
            assert "taught: probability of the executed one 0.135 → 0.223" in head
            rows = await page.all_of(".group:nth-of-type(1) dl dd:last-of-type")
            assert rows == ["0.135 → 0.0183", "0.135 → 0.223"]
            await page.choose("shade", "weight")
            assert await page.run(colours) == ["rgba(203, 36, 23, 0.35)", "rgba(26, 140, 60, 0.7)"]
            assert "was to make more likely are green" in (await page.all_of("#hint"))[0]
            assert await page.run("chance([-5, -5], [-4, -4.5])") == "log -10.00 → -8.50"
            # Groups that nobody taught have no colours.
            second = colours.replace("nth-of-type(1)", "nth-of-type(2)")
            assert set(await page.run(second)) == {""} and page.errors == []
        async with browser.opened(tmp_path / "other.html") as page:
            shades = "[...document.querySelectorAll('#shade option')].map((o) => o.disabled)"
            assert await page.run(shades) == [False, True, True]

    asyncio.run(look())


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium")
def test_panels_for_many_roles_and_for_metrics_of_few_steps(drawn, tmp_path):
    write_page(drawn, tmp_path / "page.html")

    async def look():
        async with browser.opened(tmp_path / "page.html") as page:
            titles = await page.all_of("#panels h3")
            assert titles == [
                "Success",
                "How episodes ended",
                "Reward of the team, by role",
                "Signal, share of the gradient and repetitions, by role",
                "Influence, by role",
            ]
            assert await page.all_of("#panels .hint") == [
                "training: best of K executed (RolloutConfig.select); validation and test: one drawn"
            ]
            # The mouse on a title shows what the metric means: one sentence for all roles.
            meanings = await page.run("[...document.querySelectorAll('#panels h3')].map((e) => e.title)")
            assert meanings[0] == says("rollout/success") and meanings[2] == says("role/NAME/team")
            assert meanings[1] == "\n".join(f"{end}: {says(end)}" for end in ("end/ended", "end/solved"))
            panel = "#panels .panel:nth-of-type({}) .u-legend .u-label"
            assert await page.all_of(panel.format(3)) == ["step", *ROLES]
            assert await page.all_of(panel.format(4)) == ["step", "a/b/signal", "c/repeats/a/b"]
            assert await page.all_of(panel.format(5)) == ["step", "a/b/influence", "a/b/influence/on/c"]
            assert await page.run("$('tasks').hidden") is True  # the task measures nothing
            # A step whose episodes all ended otherwise has no number of this end: it is nought.
            await page.choose("metric", "end/solved")
            assert await page.all_of("#other h3") == ["end/solved"]
            await page.choose("smooth", "5")
            assert await page.run("smoothed([0, null, 1, 2, 3, 4, 5])") == [0, None, 0.5, 1, 1.5, 2, 3]
            assert page.errors == []

    asyncio.run(look())


class Measured(Sum):
    """Gives what is a number two numbers, under hostile names."""

    def act(self, state, role, text):
        step = super().act(state, role, text)
        own = {HOSTILE: 0.25, "of/two": int(text) / 2} if text.isdigit() else {}
        return dataclasses.replace(step, metrics=own)


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium")
def test_what_the_task_measures_is_shown_by_step_and_by_candidate(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with claim(folder, gin_config.load("smoke.gin")):
        pass
    made, _ = player({(t, r): ["1", "x"] for t in range(2) for r in "ab"}, Measured(), k=2)
    content = episodes.written(
        1, [asyncio.run(made.play(1, "train", 0))], (), CharTokenizer(), {"a": 1, "b": 1}
    )
    folder.write_episodes(1, content)
    names = {
        role: [f"role/{role}/task/{name}" for name in ("of%2Ftwo", "n10", "n9")] for role in ("a", "b%2F")
    }
    lines = [{"step": s} | {n: s / 4 for own in names.values() for n in own} for s in range(3)]
    del lines[1][names["a"][0]]  # no candidate of this step had it
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_page(folder, tmp_path / "page.html")
    many = {f"role/a/task/m{i}": 1.0 for i in range(13)}
    folder.metrics.write_text(json.dumps({"step": 0} | many) + "\n")
    write_page(folder, tmp_path / "many.html")

    async def look():
        async with browser.opened(tmp_path / "page.html") as page:
            assert await page.all_of("#own h3") == ["n9", "n10", "of/two"]
            assert await page.all_of("#own .panel:nth-of-type(3) .u-label") == ["step", "a", "b/"]
            own = (
                "[...document.querySelectorAll('.group:nth-of-type(1) .measured')].map((e) => e.textContent)"
            )
            assert await page.run(own) == [f"measured by the task{HOSTILE}0.25of/two0.5"]
            assert await page.run("document.querySelectorAll('img').length") == 0
            # It is open at first, so a page that loads itself anew does not turn it.
            assert await page.run("$('tasks').open && $('tasks').dataset.first === 'open'")
            assert page.errors == []
        async with browser.opened(tmp_path / "many.html") as page:  # drawn when a person asks for them
            assert await page.all_of("#own h3") == [] and not await page.run("$('tasks').open")
            await page.run("$('tasks').open = true; new Promise((r) => setTimeout(r, 200))")
            assert len(await page.all_of("#own h3")) == 13 and page.errors == []

    asyncio.run(look())


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium")
def test_a_page_says_what_is_wrong_and_has_a_ledger_by_turn(folder, tmp_path):
    """Texts have a token more than letters. In instance 30 executed are four 3, so b ends at 12.

    Three groups there have rewards 1, 2, 3, so |advantages| of 1.225, 0, 1.225. The last one has 2, 2, 3,
    as 1 would have ended at 10: 0.707, 0.707, 1.414. The only one of instance 31 has 11, -1, 1: 1.397,
    0.889, 0.508, and 3, 2, 2 tokens. That is a mass of 3 * 4.899, 5.657 and 6.985.
    """
    shutil.copytree(folder.path, tmp_path / "run")
    shown = RunFolder(tmp_path / "run")
    wrong = {"groups/total": 4.0, "groups/signal": 0.0, "groups/too_small": 0.0, "rollout/success": 1.0}
    for step in range(4, 14):
        append_json_line(shown.metrics, {"step": step} | wrong)

    async def look(path, says):
        async with browser.opened(path) as page:
            assert await page.all_of("#findings li") == says
            assert await page.run("$('findings').hidden") is (not says)
            return await page.all_of("#speakers table:nth-of-type(2) :is(th, td)")

    write_page(shown, tmp_path / "wrong.html")
    says = ["100% of the groups of the last 10 steps gave no signal: raise RolloutConfig.candidates or "
            "temperature, or draw harder instances"]  # fmt: skip
    cells = asyncio.run(look(tmp_path / "wrong.html", says))
    write_page(folder, tmp_path / "sound.html")
    assert asyncio.run(look(tmp_path / "sound.html", [])) == cells
    assert [cells[i : i + 7] for i in range(0, len(cells), 7)] == [
        ["turn, role", "groups", "with signal", "tokens", "tokens a group with signal",
         "all candidates one text", "share of advantage mass"],
        ["0 a", "2", "100.0 %", "13", "6.5", "0.0 %", "43.5 %"],
        ["0 b", "1", "100.0 %", "6", "6", "0.0 %", "17.9 %"],
        ["1 a", "1", "100.0 %", "6", "6", "0.0 %", "17.9 %"],
        ["1 b", "1", "100.0 %", "6", "6", "0.0 %", "20.7 %"],
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium")
def test_a_page_follows_a_run_and_keeps_the_place(folder, tmp_path):
    """The run's folder is a copy: it grows."""
    shutil.copytree(folder.path, tmp_path / "run")
    grown = RunFolder(tmp_path / "run")
    writer = Writer(grown, tmp_path / "page.html")
    writer.write(reload_s=0.5)

    async def look():
        async with browser.opened(tmp_path / "page.html") as page:
            assert await page.run("$('live').hidden") is False and await page.run("location.hash") == ""
            await page.run("touched = Infinity")  # a person is busy
            await page.run("document.querySelector('#table tbody tr:nth-child(2)').click()")  # step 2
            await page.until("location.hash.includes('file=train-2')")
            await page.choose("end", "solved")
            await page.run("document.querySelector('#trees details').open = false; scrollTo(0, 300)")
            kept = "file=train-2&end=solved&instance=21&episode=0"
            assert await page.run("location.hash") == f"#{kept}"
            append_json_line(grown.metrics, {"step": 4, "rollout/success": 1.0})
            writer.write(reload_s=0.5)
            await page.run("touched = 0")
            await page.until(f"{browser.READY} && contents.steps.length === 5")
            assert (
                await page.run("$('file').value") == "train-2"
                and await page.run("$('end').value") == "solved"
            )
            assert "instance 21" in (await page.all_of(".tree h3"))[0]
            await page.until("scrollY === 300")
            assert await page.run("document.querySelector('#trees details').open") is False
            # A person who does not want to be disturbed is not; the last page loads itself no more.
            await page.run("$('following').checked = false")
            writer.write()
            await page.run("new Promise((r) => setTimeout(r, 1500))")
            assert await page.run("$('live').hidden") is False
            await page.run("$('following').checked = true")
            await page.until(f"{browser.READY} && $('live').hidden")
            assert await page.run("$('end').value") == "solved"
        # The address alone leads to the same place, and to the nearest file if that one is not there.
        async with browser.opened(tmp_path / "page.html", f"#{kept.replace('train-2', 'train-9')}") as page:
            assert await page.run("$('file').value") == "train-3"
            assert await page.run("$('end').value") == "solved"
        # What it names and is not there is left out.
        wrong = "#file=no-1&order=odd&shade=weight&smooth=x&metric=<b>&role=zz&instance=999&y=-1"
        async with browser.opened(tmp_path / "page.html", wrong) as page:
            for name, value in {"order": "instance", "shade": "logprob", "smooth": "1", "metric": ""}.items():
                assert await page.run(f"$('{name}').value") == value
            assert await page.run("$('file').value") == "train-3" and page.errors == []

    asyncio.run(look())


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium")
def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with claim(folder, gin_config.load("smoke.gin")):
        pass
    assert write_page(folder, folder.report) == []

    async def look():
        async with browser.opened(folder.report) as page:
            assert await page.all_of("#summary") == ["not ended; no step yet"]
            assert await page.all_of("#sample") == ["This run has no episodes yet."]
            for name in ("end", "shade", "smooth"):
                await page.choose(name, "")
            assert page.errors == []

    asyncio.run(look())


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


def test_a_node_as_text_with_its_boards(drawn):
    text = node(drawn, "1/train/0")
    assert text.count("-- board:") == 4 and text.count("-- at the end:") == 1
    assert "-- board:\n   #" in text and "\x1b" not in text and "\u202e" not in text
    assert "-- at the end:" not in node(drawn, "1/train/0/0/0")


def test_a_reward_without_parts_is_shown_without_them(folder):
    (episode,) = (e for e in folder.read_episodes(3) if e["instance"] == 31)
    for candidate in episode["groups"][0]["candidates"]:
        candidate["parts"] = {}
    first = episode_text(episode, episode["groups"][:1])
    assert "   reward 11 (team 1, local 10)\n" in first and ": )" not in first


def test_a_node_as_text(folder):
    whole = node(folder, "3/train/31")
    assert whole.startswith(
        "train, step 3, instance 31, episode 0: solved after 1 turn\n\n== turn 0, stage 0, a"
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
