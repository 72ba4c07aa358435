"""What the SGLang engine asks a scripted server for, and what it makes of the answers."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import shared_sglang
from aiohttp import web
from scripted_server import RAW, ScriptedServer
from shared_sglang import FOUR, STOP, ask, groups_of, request, wait

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Sampling
from atgrpo_jax.engines.sglang import draws
from atgrpo_jax.engines.sglang.servers import sampling_params

# Fixtures
folder = shared_sglang.folder
server = shared_sglang.server
make = shared_sglang.make


def test_a_group_is_one_request_after_its_prompt(server, make):
    engine = make(server)
    (samples,) = ask(engine, request())
    prompt, group = server.bodies("/generate")
    assert prompt["input_ids"] == [5, 6, 7] and prompt["sampling_params"]["max_new_tokens"] == 0
    assert group["input_ids"] == [[5, 6, 7]] * 3 and group["return_logprob"]
    assert [s.tokens for s in samples] == [
        tuple(server.answer([5, 6, 7], f"{group['rid']}_{k}", 4)["output_ids"]) for k in range(3)
    ]
    assert all(s.version == 7 and s.finish == "length" for s in samples)
    assert samples[0].logprobs == pytest.approx((-0.5, -0.6, -0.7, -0.8))
    assert engine.usage.tokens == 12 and engine.usage.prompt_tokens == 3 and engine.usage.known_tokens == 2
    assert group["sampling_params"] == sampling_params(FOUR, (STOP,))  # no seeds: not honoured here


def test_every_setting_is_sent_so_that_no_default_of_the_servers_counts():
    sent = sampling_params(Sampling(0.7, 9, top_k=5, top_p=0.9, min_p=0.1, stop=("x",)), (3, 4))
    assert sent["temperature"] == 0.7 and sent["max_new_tokens"] == 9 and sent["top_k"] == 5
    assert sent["top_p"] == 0.9 and sent["min_p"] == 0.1 and sent["stop"] == ["x"]
    assert sent["stop_token_ids"] == [3, 4] and sent["repetition_penalty"] == 1.0
    assert sent["skip_special_tokens"] is False and sent["no_stop_trim"] is True
    assert sampling_params(Sampling(), ())["top_k"] == -1


@pytest.mark.parametrize(
    "change", [{"banned": (1,)}, {"min_tokens": 2}, {"pattern": "a+"}], ids=lambda change: next(iter(change))
)
def test_settings_under_which_logprobs_would_be_others_are_refused(change):
    with pytest.raises(RunError, match=rf"Sampling.{next(iter(change))} = .* the in-process engine has both"):
        sampling_params(Sampling(1.0, 4, **change), ())


def test_seeds_are_sent_where_they_are_honoured(server, make):
    server.info["enable_deterministic_inference"] = True
    ask(make(server), request(), request())
    seeds = [[p["sampling_seed"] for p in b["sampling_params"]] for b in groups_of(server)]
    assert len(set(seeds[0])) == 3 and seeds[0] == seeds[1]


TRIED_AGAIN = (
    "408", "429", "500", "503", "closed", "cut", "no json", "one missing", "no logprobs", "a logprob less",
    "too many", "no count", "wrong id", "nan", "stopped early", "aborted", "another version", "two versions",
    "restarted", *RAW, "endless", "gzip", "307", "true for an id", "id 3.0", "logprob of 400 digits",
)  # fmt: skip


@pytest.mark.parametrize("fault", TRIED_AGAIN)
def test_a_group_that_came_back_wrong_is_drawn_again_whole(server, make, fault, capsys):
    engine = make(server)
    server.faults = [fault]
    (samples,) = ask(engine, request())
    assert len(samples) == 3 and all(len(s.tokens) == 4 and s.version == 7 for s in samples)
    assert engine.retries == 1 and "is drawn again" in capsys.readouterr().err
    assert server.version == engine.fleets["shared"].state  # a server that lost its weights has them again
    updates = len(server.bodies("/update_weights_from_disk"))
    assert updates == (2 if fault == "restarted" else 1)


def test_requests_go_to_no_other_address_than_that_of_the_config(folder, make):
    """A redirect would take the prompts with it, and the key where the hosts are the same."""
    with ScriptedServer(folder) as other, ScriptedServer(folder) as server:
        engine = make(server, attempts=2)
        server.elsewhere, server.faults = other.url, ["307"] * 9
        with pytest.raises(RunError, match=f"status 307 sends us to '{other.url}/generate'; only addresses"):
            ask(engine, request())
        assert not other.asked


def test_entries_that_a_server_repeats_are_left_out(server, make):
    engine = make(server)
    server.faults = ["repeated"]
    (samples,) = ask(engine, request())
    assert samples[0].logprobs == pytest.approx((-0.5, -0.6, -0.7, -0.8)) and engine.retries == 0


def test_nonsense_again_and_again_stops_the_run(server, make):
    engine = make(server, attempts=2)
    server.faults = ["wrong id"] * 5
    with pytest.raises(RunError, match=r"no sample at 1/train/0/0/0/0/a after 2 tries; .* outside the voc"):
        ask(engine, request())


def test_a_server_that_ends_samples_where_we_do_not_stops_the_run(server, make):
    """Drawn again until none ends so, samples would come from another distribution."""
    engine = make(server)
    server.faults = ["another end"]
    with pytest.raises(RunError, match=r"ended a sample with token \d+, and ours end with \[3\] only"):
        ask(engine, request())
    assert engine.retries == 0


def test_requests_that_would_end_a_server_are_not_sent(server, make):
    engine = make(server)
    for wrong, says in (
        (request(prompt=(5, 64)), "token id 64 at 1/train/0/0/0/0/a: the vocabulary has 64"),
        (request(prompt=(-1,)), "token id -1"),
        (request(prompt=()), "token id -1"),
        (request(prompt=(5,) * 252), r"a prompt of 252 tokens .* and 4 to draw: .* have room for 256"),
        (request(sampling=Sampling(1.0, 4, stop=("x",))), "were started with --skip-tokenizer-init"),
        (request(policy="b"), "no weights were pushed for policy 'b'"),
    ):
        with pytest.raises(RunError, match=says):
            ask(engine, wrong)
    assert not server.bodies("/generate")


def test_what_a_server_refuses_is_not_asked_again(server, make):
    engine = make(server)

    async def refuse(request, body):
        return web.json_response({"error": {"message": "temperature must be"}}, status=400)

    server.generate = refuse
    with pytest.raises(RunError, match="temperature must be .*at 1/train/0"):
        ask(engine, request())
    assert len(server.bodies("/generate")) == 1


def test_not_more_groups_than_asked_for_are_with_a_server(server, make):
    engine = make(server, groups=3)
    ask(engine, *(request(i) for i in range(12)))
    assert 1 < server.most <= 3


def test_a_slow_server_gives_errors_at_the_deadline_and_is_told_to_stop(server, make):
    engine = make(server, deadline_s=0.5)
    server.faults = ["slow"]
    began = time.monotonic()
    (samples,) = ask(engine, request())
    assert time.monotonic() - began < 5
    assert [s.finish for s in samples] == ["error"] * 3 and samples[0].version == 7
    name = server.bodies("/generate")[1]["rid"]
    drawing = {f"{name}_{k}" for k in range(3)}
    wait(lambda: {body["rid"] for body in server.bodies("/abort_request")} >= drawing)


def test_what_is_being_drawn_at_the_end_is_stopped(server, make):
    engine = make(server)
    server.faults = ["slow"]
    with ThreadPoolExecutor() as threads:
        work = threads.submit(ask, engine, request())
        wait(lambda: server.drawing == 1)
        engine.close()
        with pytest.raises(asyncio.CancelledError):
            work.result()
    assert len(server.bodies("/abort_request")) == 4


def test_a_server_that_is_not_ready_by_the_deadline_ends_the_run(server, make):
    engine = make(server, deadline_s=0.5)
    engine.fleets["shared"].servers[0].state = None
    server.paths["/model_info"] = lambda body: time.sleep(1.0)
    with pytest.raises(RunError, match=r"no sample at .*: http.* was not ready to draw within .*deadline"):
        ask(engine, request())


def test_who_is_cancelled_behind_a_router_has_every_server_stop(folder, make):
    with ScriptedServer(folder) as one, ScriptedServer(folder) as other, ScriptedServer(folder) as router:
        engine = make(one, other, router=router.url, deadline_s=0.5)
        router.version, router.faults = engine.fleets["shared"].state, ["slow"]
        ask(engine, request())
        wait(lambda: all(len(server.bodies("/abort_request")) == 4 for server in (one, other)))


def test_who_is_cancelled_has_the_server_stop(server, make):
    engine = make(server)
    server.faults = ["slow"]

    async def give_up():
        task = asyncio.ensure_future(engine.sample(request()))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    wait(lambda: len(server.bodies("/abort_request")) == 4)


def test_a_try_that_fails_late_leaves_the_others_their_time(monkeypatch):
    """Of two servers the first is slow, and the second fails when there is no time for a third try."""
    monkeypatch.setattr(draws.random, "random", lambda: 1.0)  # it would wait 0.6 s before the next one
    slow, broken = (SimpleNamespace(url=name, state="w") for name in ("slow", "broken"))

    class Both:
        servers = slow, broken

        def choose(self, group, attempt, busy):
            return next((server for server in self.servers if server not in busy), None)

        def spare(self, busy):
            return True

        def late(self, server):
            assert server is slow

        def in_time(self, servers):
            assert servers == [slow]

    class Scripted(draws.Drawer):
        async def _try(self, tried, fleet, request, version):
            await asyncio.sleep(1.75 if tried.servers == [slow] else 0.5)  # the second one begins after 1 s
            if tried.servers == [slow]:
                return "drawn"
            raise draws.Unreachable("broken: gone")

    drawer = Scripted(None, None, 2.0, 6)
    assert asyncio.run(drawer.draw(request(), Both(), 1)) == "drawn" and drawer.retries == 1
