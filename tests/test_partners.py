"""Partners over real HTTP: what they are asked, what they answer, and every way in which that fails."""

import asyncio
import contextlib
import email.utils
import json
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest
from aiohttp import web
from chat_server import MODEL, ChatServer, completion, refusal, without

from atgrpo_jax.common.errors import PromptTooLong, RunError, Unreachable
from atgrpo_jax.common.types import GroupKey, Sample
from atgrpo_jax.partners.answers import Cost, Records
from atgrpo_jax.partners.opening import opened
from atgrpo_jax.partners.partners import Partner

MESSAGES = [{"role": "user", "content": "is 3 a prime?"}]


def key(instance=0, step=1, turn=0):
    return GroupKey(step, "train", instance, 0, turn, "critic")


@pytest.fixture
def server():
    with ChatServer() as server:
        yield server


@contextlib.contextmanager
def asking(server, folder=None, kind="step", seed=0, **settings):
    partner = Partner(**{"url": server.url, "model": MODEL} | settings)
    with opened({"critic": partner}, folder, kind, seed) as partners:
        yield partners


def ask(partners, *instances, messages=MESSAGES, spoken=True):
    async def everything():
        return await asyncio.gather(*(partners.ask(messages, key(i), spoken) for i in instances))

    return asyncio.run(everything())


def lines(folder):
    return [json.loads(line) for path in sorted(folder.iterdir()) for line in path.read_text().splitlines()]


def test_a_partner_is_asked_what_its_role_is_shown_and_its_words_come_back(server, tmp_path, capsys):
    server.says = lambda messages: " yes,\n 3 is\t"
    with asking(server, tmp_path, temperature=0.25, max_tokens=40) as partners:
        answers = ask(partners, 0)
    assert answers == [(Sample((), (), "stop", -1), " yes,\n 3 is\t")]
    assert server.asked == [
        ("/v1/models", None),
        (
            "/v1/chat/completions",
            {"model": MODEL, "messages": MESSAGES, "temperature": 0.25, "max_tokens": 40},
        ),
    ]
    assert "Authorization" not in server.sent
    said = capsys.readouterr().err
    assert f"role critic is a partner, {MODEL} at {server.url}; it is not trained" in said


def test_some_models_want_another_name_for_the_limit(server):
    with asking(server, limit_name="max_completion_tokens", max_tokens=5) as partners:
        ask(partners, 0)
    (sent,) = server.bodies("/v1/chat/completions")
    assert sent["max_completion_tokens"] == 5 and "max_tokens" not in sent


def test_answers_are_counted_and_recorded_before_they_are_used(server, tmp_path):
    server.script = [completion("cut", "length", answer=40), completion("", answer=1)]
    with asking(server, tmp_path) as partners:
        assert ask(partners, 0) == [(Sample((), (), "length", -1), "cut")]
        (line,) = lines(tmp_path)
        assert ask(partners, 1) == [(Sample((), (), "stop", -1), "")]
        assert ask(partners, 2) == [(Sample((), (), "stop", -1), "12")]
        assert len(lines(tmp_path)) == 3
        cost = partners.costs["critic"]
    assert line["at"] == "0/1/train/0/0/0/0/critic" and len(line["prompt"]) == 32
    assert {n: line[n] for n in ("role", "text", "finish", "model", "prompt_tokens", "answer_tokens")} == {
        "role": "critic", "text": "cut", "finish": "length", "model": MODEL, "prompt_tokens": 11,
        "answer_tokens": 40,
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001.jsonl"]
    counts = cost.answers, cost.prompt_tokens, cost.answer_tokens, cost.truncated, cost.empty, cost.refused
    assert counts == (3, 33, 44, 1, 1, 0) and cost.asked == 3 and cost.seconds > 0


def test_what_is_recorded_is_not_asked_again_also_without_the_server(server, tmp_path, capsys):
    numbers = iter(range(9))
    server.says = lambda messages: str(next(numbers))
    with asking(server, tmp_path) as partners:
        first = ask(partners, 0, 1, 2)
    server.__exit__()
    with asking(server, tmp_path, "evaluated") as partners:
        assert ask(partners, 2, 0, 1) == [first[2], first[0], first[1]]
        assert partners.costs["critic"] == Cost(answers=3, prompt_tokens=33, answer_tokens=9)
    gone = pytest.raises(Unreachable, match="critic: http.*/chat/completions: Cannot connect.*tries = 1")
    with gone, asking(server, tmp_path, tries=1) as partners:
        ask(partners, 3)
    said = capsys.readouterr().err
    assert "/models: Cannot connect" in said and "going on with what is recorded, 3 answers" in said


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1}, {"temperature": 0.5}, {"max_tokens": 7}, {"model": "b"}, {"messages": MESSAGES * 2},
        {"instance": 1},
    ],
)  # fmt: skip
def test_an_answer_is_that_of_its_address_and_of_all_that_was_asked(server, tmp_path, other):
    server.models = (MODEL, "b")
    messages, instance = other.pop("messages", MESSAGES), other.pop("instance", 0)
    with asking(server, tmp_path) as partners:
        ask(partners, 0)
    with asking(server, tmp_path, **other) as partners:
        ask(partners, instance, messages=messages)
    with asking(server, tmp_path, **other) as partners:
        ask(partners, instance, messages=messages)
    with asking(server, tmp_path, at_once=2, deadline_s=9.0, most_answers=9) as partners:
        ask(partners, 0)
    assert len(server.prompts) == 2


def test_a_record_that_a_crash_cut_short_is_asked_for_again(server, tmp_path):
    with asking(server, tmp_path) as partners:
        ask(partners, 0)
        ask(partners, 1)
    path = tmp_path / "step_000001.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with asking(server, tmp_path) as partners:
        ask(partners, 0, 1)
    assert len(server.prompts) == 3
    assert [line["at"] for line in lines(tmp_path)] == [f"0/1/train/{i}/0/0/0/critic" for i in range(2)]
    assert Records(tmp_path, "evaluated").of("critic")[1].text == "12"


@pytest.mark.parametrize(
    "change",
    [{"finish": "end"}, {"text": 3}, {"prompt_tokens": -1}, {"answer_tokens": True}, {"more": 1},
     {"at": None}],
)  # fmt: skip
def test_records_that_are_none_are_named(tmp_path, change):
    good = {
        "role": "critic", "at": "0/1", "prompt": "d", "text": "t", "finish": "stop", "model": "m",
        "prompt_tokens": 1, "answer_tokens": 1,
    }  # fmt: skip
    path = tmp_path / "step_000003.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n")
    with pytest.raises(RunError, match="step_000003.jsonl, line 2: this is no answer of a partner; put"):
        Records(tmp_path, "step")


def test_an_answer_that_cannot_be_recorded_is_not_used(server, tmp_path, limited_file_size):
    with asking(server, tmp_path) as partners:
        ask(partners, 0)
        size = (tmp_path / "step_000001.jsonl").stat().st_size + 5
        with limited_file_size(size), pytest.raises(OSError, match="step_000001.jsonl"):
            ask(partners, 1)
    assert len(lines(tmp_path)) == 1


def test_an_answer_that_came_is_recorded_though_nobody_waits_for_it(server, tmp_path):
    """All threads are busy when the answer comes, and the rollout is given up meanwhile."""
    free = threading.Event()

    async def given_up(partners):
        waiting = asyncio.ensure_future(partners.ask(MESSAGES, key(), True))
        while not partners._adding:
            await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    with asking(server, tmp_path) as partners, ThreadPoolExecutor(1) as threads:
        partners._loop.loop.set_default_executor(threads)
        threads.submit(free.wait)
        asyncio.run(given_up(partners))
        assert list(tmp_path.iterdir()) == []
        threading.Timer(0.2, free.set).start()
        partners.close()
        (line,) = lines(tmp_path)
    assert line["text"] == "12"


def test_no_more_requests_are_on_their_way_than_it_is_told(server):
    async def answer():
        """Waits for others, who may come a moment later."""
        end = time.monotonic() + 20
        while server.most < 3 and time.monotonic() < end:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        return "12"

    server.says = lambda messages: answer()
    with asking(server, at_once=3) as partners:
        ask(partners, *range(9))
    assert server.most == 3 and len(server.prompts) == 9


GIVEN_UP = r"at 1/train/1/0/0/0/critic; given up by partners.Partner.tries = 2\); start the server again"


def cut():
    return web.Response(status=200, body=b'{"choices": [', content_type="application/json")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (refusal(500, "worker died"), "status 500: worker died"),
        (refusal(502, "x"), "status 502"),
        (refusal(503, "loading"), "status 503: loading"),
        (cut, "answered no JSON"),
        (lambda: web.Response(text="[" * 100_000), "no JSON: it is nested too deep"),
        (lambda: web.Response(body=b"\xff"), "answered no JSON"),
        (lambda: web.Response(text="x" * 2_000_000), "more than 589824 bytes"),
        (lambda: web.Response(body=b"x", headers={"Content-Encoding": "gzip"}), "answered in 'gzip'"),
        (completion("a", finish="tool_calls"), "ended an answer for the reason 'tool_calls'"),
        (completion("a", finish=None), "ended an answer for the reason None"),
        (completion(["parts"]), "answered content = "),
        (completion("a", answer=-1), r"counted \[11, -1\] tokens"),
        (completion("a", answer=True), "answered completion_tokens = True"),
        (without("usage"), "without 'usage'"),
        (without("model"), "without 'model'"),
        (without("choices"), "without 'choices'"),
        ({**completion("a"), "choices": []}, "answered 0 choices"),
        ({"choices": [3], "usage": {}}, "answered 3 for an object"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_asked_for_again_and_then_stops_the_run(server, monkeypatch, fault, says):
    monkeypatch.setattr("random.random", lambda: -0.5)  # no pauses
    with asking(server, tries=2) as partners:
        server.script = [fault]
        assert ask(partners, 0)[0][1] == "12"
        server.script = [fault] * 2
        with pytest.raises(RunError, match=f"role critic: http://127.*{says}.*{GIVEN_UP}") as stopped:
            ask(partners, 1)
    assert "\n" not in str(stopped.value) and len(str(stopped.value)) < 900
    assert len(server.prompts) == 4


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (refusal(400, "no temperature"), "400: no temperature; the server calls the request wrong"),
        (refusal(404, "no model x"), "404: no model x; partners.Partner.url comes before /chat/completions"),
        (refusal(401, "who?"), "401: who\\?; it wants a key: partners.Partner.api_key_file or"),
        (refusal(429, "pay", "insufficient_quota"), "pay; the same command goes on when the account may"),
        (refusal(307, "", Location="http://b/v1"), "307 sends us to 'http://b/v1'; give that as partners.P"),
        (completion("x", model="another"), f"answered as 'another', and before as '{MODEL}'; one run needs"),
    ],
)  # fmt: skip
def test_what_no_other_try_helps_stops_the_run_at_once(server, tmp_path, fault, says):
    with asking(server, tmp_path) as partners:
        ask(partners, 1)
        server.script = [fault]
        with pytest.raises(RunError, match=f"^role critic: http://127.0.0.1:[0-9]+/v1.*{says}"):
            ask(partners, 0)
    assert len(server.prompts) == 2 and len(lines(tmp_path)) == 1


def test_the_first_model_is_remembered_when_the_run_goes_on(server, tmp_path):
    with asking(server, tmp_path) as partners:
        ask(partners, 0)
    server.script = [completion("x", model="another")]
    with asking(server, tmp_path) as partners, pytest.raises(RunError, match="answered as 'another'"):
        ask(partners, 1)


def test_a_slow_server_is_given_up_at_the_deadline(server):
    async def never():
        await asyncio.sleep(30)

    server.says = lambda messages: never()
    began = time.monotonic()
    says = "no answer in 0.[0-3] s .*given up by partners.Partner.deadline_s = 0.3.; raise that, or lower"
    with asking(server, deadline_s=0.3) as partners, pytest.raises(Unreachable, match=says):
        ask(partners, 0)
    assert time.monotonic() - began < 25


def test_a_rate_limit_is_waited_for_and_counts_as_no_failure(server, monkeypatch):
    monkeypatch.setattr("random.random", lambda: -0.5)  # no pauses but those that are asked for
    soon = email.utils.formatdate(time.time() - 5)
    server.script = [refusal(429, "slowly", **{"Retry-After": after}) for after in ("0", soon, "nonsense")]
    server.script += [refusal(429, "slowly", **{"Retry-After": "1"})]
    began = time.monotonic()
    with asking(server, tries=1) as partners:
        assert ask(partners, 0)[0][1] == "12"
    assert time.monotonic() - began > 1 and len(server.prompts) == 5


def test_a_rate_limit_beyond_the_deadline_stops_the_run_at_once(server):
    server.script = [refusal(429, "tomorrow", **{"Retry-After": "86400"})]
    began = time.monotonic()
    says = "status 429: tomorrow .*deadline_s = 20.; raise that, or lower partners.Partner.at_once"
    with asking(server, deadline_s=20.0) as partners, pytest.raises(Unreachable, match=says):
        ask(partners, 0)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("fault", "finish"),
    [
        (refusal(400, "too long", "context_length_exceeded"), "too_long"),
        (refusal(400, "The input (9 tokens) is longer than the context length (8 tokens)."), "too_long"),
        (completion("half a", "content_filter"), "error"),
    ],
)  # fmt: skip
def test_a_prompt_without_an_answer_ends_its_episode_now_and_when_it_is_replayed(
    server, tmp_path, fault, finish, capsys
):
    server.script = [fault]
    for _ in range(2):
        with asking(server, tmp_path) as partners:
            assert ask(partners, 0) == [(Sample((), (), finish, -1), "")]
            assert partners.costs["critic"].refused == 1 and partners.costs["critic"].empty == 0
    assert len(server.prompts) == 1 and "the episode ends there" in capsys.readouterr().err


def test_a_first_prompt_that_is_too_long_stops_the_run(server):
    server.script = [refusal(400, "too long", "context_length_exceeded")]
    with asking(server) as partners, pytest.raises(PromptTooLong, match="400: too long .at 1/train/0/0/0/0"):
        ask(partners, 0, spoken=False)


def test_halves_of_characters_and_long_texts_come_through(server):
    server.says = lambda messages: web.Response(
        text=json.dumps(completion("a" * 300_000)).replace("a" * 9, r"\ud800", 1),
        content_type="application/json",
    )
    with asking(server) as partners:
        ((_, text),) = ask(partners, 0, messages=[{"role": "user", "content": "half \ud83d"}])
    assert text == "?" + "a" * (300_000 - 9)
    assert server.prompts == [[{"role": "user", "content": "half ?"}]]


@pytest.mark.parametrize(
    ("limit", "used"), [({"most_answers": 2}, "most_answers = 2"), ({"most_tokens": 28}, "most_tokens = 28")]
)  # fmt: skip
def test_a_budget_is_that_of_the_whole_run(server, tmp_path, limit, used):
    with asking(server, tmp_path, **limit) as partners:
        ask(partners, 0)  # 14 tokens
    with asking(server, tmp_path, **limit) as partners:
        ask(partners, 1)
        with pytest.raises(RunError, match=f"budget of its partner is used up, .*{used}; with a higher"):
            ask(partners, 2)
    with asking(server, tmp_path, **limit) as partners:
        assert len(ask(partners, 0, 1)) == 2  # what is recorded costs nothing
    assert len(server.prompts) == 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "x"}, rf"/models lists \['{MODEL}'\], and no 'x'; set partners.Partner.model or url"),
        ({"url": "http://127.0.0.1:1/v1"}, "role critic: http://127.0.0.1:1/v1/models: Cannot .*; start the"),
        ({"api_key_variable": "NO_SUCH"}, "partners.Partner.api_key_variable NO_SUCH: no API key in NO_SUCH"),
    ],
)  # fmt: skip
def test_a_partner_that_cannot_be_asked_is_found_at_the_start(server, settings, says):
    with pytest.raises(RunError, match=says), asking(server, **settings):
        pass
    assert not server.prompts


def test_an_address_without_its_end_is_told_so(server):
    says = "/models: status 404: .*partners.Partner.url comes before /chat/completions, often it ends in /v1"
    with pytest.raises(RunError, match=says), asking(server, url=server.url.removesuffix("/v1")):
        pass


def test_keys_are_sent_and_shown_to_nobody(tmp_path, monkeypatch, capsys):
    secret = "s3cret/+key"
    (tmp_path / "key").write_text(secret + "\n")
    monkeypatch.setenv("PARTNER_KEY", secret)
    words = ""
    with ChatServer(key=secret) as server:
        for given in ({"api_key_file": str(tmp_path / "key")}, {"api_key_variable": "PARTNER_KEY"}):
            with asking(server, tmp_path / "answers", **given) as partners:
                ask(partners, 0)
                words += repr(vars(partners))
        none = pytest.raises(RunError, match="401: no such key: None; it wants a key: partners.Partner.api")
        with none, asking(server):
            pass
        monkeypatch.setenv("PARTNER_KEY", "another")
        wrong = pytest.raises(RunError, match="no such key: Bearer [*]{7}; it does not take the key in PART")
        with wrong as refused, asking(server, api_key_variable="PARTNER_KEY"):
            pass
        words += "".join(traceback.format_exception(refused.value))
    said = capsys.readouterr()
    words += said.out + said.err + "".join(map(str, lines(tmp_path / "answers")))
    assert "s3cret" not in words and "another" not in words


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"url": "127.0.0.1:30000"}, "Partner.url = '127.0.0.1:30000': must look like http://host:30000/v1"),
        ({"url": 3}, "Partner.url = 3: expected str"), ({"model": ""}, "Partner.model"),
        ({"temperature": -1.0}, "Partner.temperature"), ({"max_tokens": 0}, "Partner.max_tokens"),
        ({"limit_name": "n"}, "Partner.limit_name"), ({"deadline_s": 0.0}, "Partner.deadline_s"),
        ({"tries": 0}, "Partner.tries"), ({"at_once": 0}, "Partner.at_once"),
        ({"most_tokens": -1}, "Partner.most_tokens"), ({"most_answers": -1}, "Partner.most_answers"),
        ({"api_key_file": "a", "api_key_variable": "b"}, "in a file or in a variable, not in both"),
    ],
)  # fmt: skip
def test_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        Partner(**{"url": "http://127.0.0.1:1/v1", "model": MODEL} | wrong)


@pytest.mark.parametrize(
    "url", ["http://me:hunter2@127.0.0.1/v1", "http://a/v1?key=hunter2", "http://a#hunter2"]
)
def test_passwords_in_addresses_are_refused_and_not_shown(url):
    with pytest.raises(ValueError, match="a user, password or query in it") as refused:
        Partner(url, MODEL)
    assert "hunter2" not in str(refused.value)


def test_answers_are_kept_in_a_bucket_too(server, bucket):
    with asking(server, bucket / "partners") as partners:
        first = ask(partners, 0, 1, 2)
    with asking(server, bucket / "partners", "evaluated") as partners:
        assert ask(partners, 0, 1, 2) == first
    assert len(server.prompts) == 3
