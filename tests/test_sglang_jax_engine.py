"""An Engine of sglang-jax itself, where it is installed: launch/test_sglang_jax.sh."""

import asyncio
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import CharTokenizer
from shared_sglang_jax import MODEL, SIZES, STOP, request

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.engines.local.local import LocalEngine, LocalEngineConfig
from atgrpo_jax.engines.protocol import Served
from atgrpo_jax.engines.sglang_jax import session, starting
from atgrpo_jax.engines.sglang_jax.samples import NONE
from atgrpo_jax.models.attention import masked_attention
from atgrpo_jax.models.lora import init_adapter
from atgrpo_jax.models.transformer import PolicyWeights, init_params, logits

live = pytest.mark.skipif(
    os.environ.get("ATGRPO_SGLANG_JAX") != "1", reason="launch/test_sglang_jax.sh runs it, with sglang-jax"
)
# sglang-jax and what it imports warn of many things.
quiet = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def params():
    """Of which greedy answers differ, and are no repetitions."""
    fresh = init_params(MODEL, jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim == 2 else leaf, fresh)


@pytest.fixture(scope="module")
def other(params):
    return jax.tree.map(lambda leaf: leaf[..., ::-1] if leaf.ndim == 2 else leaf, params)


def served(*policies):
    mesh = MeshConfig().build()
    models, meshes = dict.fromkeys(policies, MODEL), dict.fromkeys(policies, mesh)
    initial_names = {name: name for name in models}
    return Served(models, meshes, {}, (STOP,), CharTokenizer().decode, initial_names, None, 16, 3)


@pytest.fixture(scope="module")
def built():
    engine = SIZES.build(served("a"))
    yield engine
    engine.close()


@pytest.fixture
def engine(built, params):
    built.push_weights("a", PolicyWeights(params), 7)
    return built


@pytest.fixture
def local(params):
    local = LocalEngine(
        MODEL, (STOP,), LocalEngineConfig(slots=12, max_prompt=32, prompt_cache=256, page=8, prefill=16)
    )
    local.push_weights("a", PolicyWeights(params), 7)
    return local


def draw(engine, *requests):
    async def everything():
        return await asyncio.gather(*map(engine.sample, requests))

    return asyncio.run(everything())


def many(n=11, **sampling):
    rng = random.Random(0)
    return [request([rng.randrange(96) for _ in range(rng.randint(1, 20))], i, **sampling) for i in range(n)]


def tokens(answers):
    return [[sample.tokens for sample in samples] for samples in answers]


@jax.jit
def _forward(params, ids):
    def causal(q, k, v, *_):
        size = q.shape[1]
        return masked_attention(q, k, v, jnp.tril(jnp.ones((1, size, size), bool))), None

    hidden, _ = MODEL.apply({"params": params}, ids, jnp.arange(ids.shape[1])[None], causal)
    return logits(params, hidden)


def told(params, prompt, sample, temperature):
    """Logprobs of a sample by one plain forward pass."""
    ids = np.zeros((1, 160), np.int32)  # one shape for all lengths
    whole = (*prompt, *sample.tokens)
    ids[0, : len(whole)] = whole
    all_logprobs = jax.nn.log_softmax(_forward(params, ids)[0] / temperature)
    return [all_logprobs[len(prompt) - 1 + n, token] for n, token in enumerate(sample.tokens)]


@live
@quiet
def test_greedy_tokens_are_those_of_our_own_engine(engine, local):
    asked = many(k=1, temperature=0.0, max_tokens=12)
    answers = draw(engine, *asked)
    assert tokens(answers) == tokens(draw(local, *asked))
    assert {sample.version for samples in answers for sample in samples} == {7}


@live
@quiet
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_the_models_at_the_sampling_temperature(engine, params, temperature):
    for one, samples in zip(
        many(5, temperature=temperature), draw(engine, *many(5, temperature=temperature)), strict=True
    ):
        for sample in samples:
            expected = told(params, one.prompt_ids, sample, temperature)
            np.testing.assert_allclose(sample.logprobs, expected, rtol=0, atol=1e-4)


@live
@quiet
def test_long_answers_have_a_logprob_a_token(engine, params):
    (samples,) = draw(engine, request([1, 2], k=8, max_tokens=130))
    for sample in samples:
        assert len(sample.tokens) == len(sample.logprobs)
        assert (sample.tokens[-1] == STOP) == (sample.finish == "stop")
        assert STOP not in sample.tokens[:-1]
        np.testing.assert_allclose(sample.logprobs, told(params, [1, 2], sample, 1.0), rtol=0, atol=1e-4)
    assert {sample.finish for sample in samples} == {"stop", "length"}
    assert max(len(sample.tokens) for sample in samples) == 130


@live
@quiet
def test_siblings_differ_and_a_repetition_is_the_same(engine, params):
    """Alone or in company, in one event loop or the next, before the cache is emptied and after."""
    asked = many(6)
    first = draw(engine, *asked)
    assert all(len({sample.tokens for sample in samples}) == 3 for samples in first)
    alone = [draw(engine, one)[0] for one in asked]
    engine.push_weights("a", PolicyWeights(params), 7)
    assert tokens(first) == tokens(alone) == tokens(draw(engine, *asked))
    assert tokens(draw(engine, dataclasses.replace(asked[0], addresses=asked[1].addresses))) != tokens(
        first[:1]
    )


@live
@quiet
def test_sampling_follows_the_distribution(engine, params):
    """sglang-jax's own seeded sampling is a hundred times this bound away."""
    rows = np.asarray(_forward(params, np.pad([[1, 2, 3]], ((0, 0), (0, 157)))))[0, 2] / 0.5
    probs = np.asarray(jax.nn.softmax(rows))
    counts = np.zeros(96)
    for step in range(6):
        (samples,) = draw(engine, request([1, 2, 3], k=256, step=step, max_tokens=1, temperature=0.5))
        for sample in samples:
            counts[sample.tokens[0]] += 1
    n = counts.sum()
    chi_square = ((counts - n * probs) ** 2 / (n * probs)).sum()
    assert chi_square < 95 + 5 * (2 * 95) ** 0.5


@live
@quiet
def test_a_push_changes_answers_to_those_of_the_new_weights(engine, local, other, monkeypatch):
    asked = many(5, k=1, temperature=0.0)
    before = tokens(draw(engine, *asked))
    local.push_weights("a", PolicyWeights(other), 8)
    right = tokens(draw(local, *asked))
    assert before != right
    with monkeypatch.context() as patched:  # what was computed of the prompts is kept
        patched.setattr(session.Session, "_forget", lambda session: None)
        engine.push_weights("a", PolicyWeights(other), 8)
        assert tokens(draw(engine, *asked)) != right
    engine.push_weights("a", PolicyWeights(other), 8)
    assert tokens(draw(engine, *asked)) == right and engine.version("a") == 8


@live
@quiet
def test_an_adapter_is_merged(engine, local, params):
    adapter = jax.tree.map(
        lambda leaf: leaf + 0.05, init_adapter(params, jax.random.key(1), 2, MODEL.family.adapted)
    )
    asked = many(5, k=1, temperature=0.0)
    before = tokens(draw(engine, *asked))
    for one in (engine, local):
        one.push_weights("a", PolicyWeights(params, adapter, 2.0), 9)
    assert tokens(draw(engine, *asked)) == tokens(draw(local, *asked)) != before


@live
@quiet
def test_weights_that_do_not_fit_change_nothing(engine, params):
    asked = many(3, k=1, temperature=0.0)
    before = draw(engine, *asked)
    wrong = params | {"layer_1": params["layer_1"] | {"up": {"kernel": jnp.zeros((32, 47))}}}
    with pytest.raises(
        RunError,
        match=r"policy a: what is pushed has model.layers.1.mlp.up_proj.weight \(32, 47\), .* \(32, 48\)",
    ):
        engine.push_weights("a", PolicyWeights(wrong), 8)
    assert engine.version("a") == 7 and draw(engine, *asked) == before


@live
@quiet
def test_usage_counts_prompts_once_and_what_was_known_of_them(engine):
    before = engine.usage
    (samples,) = draw(engine, request([1] * 10))
    used, before = engine.usage - before, engine.usage
    assert (used.prompt_tokens, used.known_tokens) == (10, 0)
    assert used.tokens == sum(len(sample.tokens) for sample in samples)
    draw(engine, request([1] * 10))
    used = engine.usage - before
    assert (used.prompt_tokens, used.known_tokens) == (10, 9)  # the last one's output is wanted


@live
@quiet
def test_a_deadline_and_a_cancellation_leave_nothing_behind(engine, params, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_config", dataclasses.replace(SIZES, deadline_s=0.001))
        (samples,) = draw(engine, request([1, 2, 3], max_tokens=120))
    assert {(sample.finish, sample.tokens) for sample in samples} == {("error", ())}
    with monkeypatch.context() as patched:  # one of them is late
        drawn = iter([True, True, False])
        generate = session.Session.generate

        async def late(self, *args):
            return await generate(self, *args) if next(drawn, True) else NONE

        patched.setattr(session.Session, "generate", late)
        (samples,) = draw(engine, request([1, 2, 3], max_tokens=2))
    assert len(samples) > 2 and {sample.finish for sample in samples} == {"error"}

    async def cancelled():
        task = asyncio.create_task(engine.sample(request([1, 2, 3], max_tokens=120)))
        await asyncio.sleep(0.2)
        with pytest.raises(RunError, match="while samples are being drawn"):
            monkeypatch.setattr(session, "PATIENCE", 0.0)
            engine.push_weights("a", PolicyWeights(params), 8)
        monkeypatch.undo()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    engine.push_weights("a", PolicyWeights(params), 8)
    assert {sample.finish for sample in draw(engine, request([1, 2]))[0]} <= {"stop", "length"}


@live
@quiet
@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (request([1] * 153), r"a prompt of 153 tokens at 1/train/0/0/0/0/a: must be 1 to 152"),
        (request([]), "a prompt of 0 tokens"),
        (request([1, 96]), "token id 96 at 1/train/0/0/0/0/a: the vocabulary has 96"),
        (request([1], policy="ghost"), "has no policy 'ghost'"),
        (request([1], banned=(2,)), "Sampling.banned"),
    ],
)
def test_requests_it_cannot_serve_are_refused(engine, bad, says):
    with pytest.raises(RunError, match=says):
        draw(engine, bad)
    assert draw(engine, request([1] * 152, k=1))[0][0].tokens


@live
@quiet
def test_the_process_is_left_as_it_was(built):
    """Event loops, handlers of signals and of the end of threads; and idle, the Engine uses no core."""
    assert not type(asyncio.new_event_loop()).__module__.startswith("uvloop")
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    began = time.process_time()
    time.sleep(1)
    assert time.process_time() - began < 0.3
    with pytest.raises(RunError, match="must be started from the main thread"):
        failures = []
        thread = threading.Thread(target=lambda: failures.append(_error(lambda: SIZES.build(served("a")))))
        thread.start()
        thread.join()
        raise failures[0]


def _error(work):
    try:
        work()
    except RunError as error:
        return error


@live
@quiet
def test_a_failure_inside_reaches_whoever_waits_and_ends_nothing_else(params, monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    failing = SIZES.build(served("a"))
    failing.push_weights("a", PolicyWeights(params), 1)
    failing._sessions["a"]._scheduler.run_batch = lambda batch: 1 / 0
    for _ in range(2):
        with pytest.raises(RunError, match="a thread of sglang-jax has failed"):
            draw(failing, request([1]))
    failing.close()
    assert child.poll() is None
    child.communicate(b"\n")
    asked = starting._arguments
    monkeypatch.setattr(
        starting, "_arguments", lambda *sizes: asked(*sizes) | {"attention_backend": "none such"}
    )
    before = detokenizers()
    with pytest.raises(RunError, match="policy a: sglang-jax did not start"):
        SIZES.build(served("a"))
    # Its thread waits in a socket. If that were closed, ZeroMQ would abort this process, now or later.
    left = detokenizers() - before
    assert len(left) == 1
    wake(left)
    assert all(thread.is_alive() for thread in left)


def detokenizers():
    return {thread for thread in threading.enumerate() if thread.name == "sglang-jax::detokenizer"}


def wake(threads):
    """Sends each thread a signal, so that it looks at its socket again."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    for thread in threads:
        signal.pthread_kill(thread.ident, signal.SIGUSR1)
    time.sleep(0.2)
    signal.signal(signal.SIGUSR1, before)


@live
@quiet
def test_a_run_trains_and_sampler_and_learner_agree(tmp_path):
    """As a user starts it."""
    params = {
        "experiment.Experiment.steps": 3,
        "warm_start.WarmStartConfig.steps": 40,
        "warm_start.WarmStartConfig.cache_dir": f'"{tmp_path / "cache"}"',
        "evaluation.EvaluationConfig.instances": 4,
        "evaluation.EvaluationConfig.validation_instances": 2,
    }
    command = [sys.executable, "-m", "atgrpo_jax.train", "--gin_file=smoke_sglang_jax.gin", "--run_dir=run"]
    command += [f"--gin_param={name} = {value}" for name, value in params.items()]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 4 and all(record["policy/shared/gate_gap"] < 1e-4 for record in records)
    learned = [record for record in records[1:] if record["policy/shared/updates"]]
    assert learned and all(record["policy/shared/logprob_gap"] < 1e-4 for record in learned)
