"""The in-process engine gives the same samples in any company: rows, memory, pushes, meshes, kernels."""

import asyncio
import dataclasses
import random
import re

import jax
import numpy as np
import pytest
import shared_local
from fakes import PARITY
from shared_local import CONFIG, MODEL, STOP, draw, many, request

from atgrpo_jax.arrays.mesh import MeshConfig, parameter_shardings
from atgrpo_jax.common.types import Sampling
from atgrpo_jax.engines.local.lanes import Lane
from atgrpo_jax.engines.local.local import LocalEngine, LocalEngineConfig
from atgrpo_jax.models.config import Compute
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.transformer import PolicyWeights, init_params
from atgrpo_jax.run.metrics import CompileCounter

# Fixtures
params = shared_local.params
engine = shared_local.engine


@pytest.mark.thorough
def test_a_request_gives_the_same_samples_whatever_the_company(engine, params):
    """Alone, together, in another order, and among requests of other lengths: tokens, logprobs, bytes."""
    requests = many()
    together = draw(engine, *requests)
    alone = [draw(engine, one)[0] for one in requests]
    assert together == alone
    order = list(range(len(requests)))
    random.Random(1).shuffle(order)
    shuffled = draw(engine, *(requests[i] for i in order))
    assert [shuffled[order.index(i)] for i in range(len(order))] == together
    # Two of the three samples of a request first, and the third one later.
    first = [dataclasses.replace(one, addresses=one.addresses[:2]) for one in requests]
    later = [dataclasses.replace(one, addresses=one.addresses[2:]) for one in requests]
    apart = draw(engine, *first, *later)
    assert [[*two, *third] for two, third in zip(apart[:11], apart[11:], strict=True)] == together


@pytest.mark.thorough
def test_a_second_copy_arranged_for_decoding_changes_no_token(engine, params):
    plain = LocalEngine(MODEL, (STOP,), dataclasses.replace(CONFIG, joined_mb=0.0))
    plain.push_weights("shared", PolicyWeights(params), version=7)
    assert plain.parameters("shared") is params is not engine.parameters("shared")
    for ours, expected in zip(draw(plain, *many(5)), draw(engine, *many(5)), strict=True):
        for sample, same in zip(ours, expected, strict=True):
            assert sample.tokens == same.tokens
            np.testing.assert_allclose(sample.logprobs, same.logprobs, **PARITY)


def test_rows_are_free_for_others_as_soon_as_a_sample_ends(params):
    """Nine samples of 16 tokens and 24 of 9, in four rows that are never empty before the end."""
    engine = LocalEngine(MODEL, (), dataclasses.replace(CONFIG, slots=4))
    engine.push_weights("shared", PolicyWeights(params), version=7)
    lengths = [16, 9, 9, 9] * 8 + [16]
    draw(engine, *(request([i], i, k=1, max_tokens=n) for i, n in enumerate(lengths)))
    assert engine.usage.tokens == sum(lengths) == 360
    assert 360 <= engine.usage.slot_steps <= 360 + 3 * 16


def test_callers_that_were_answered_ask_again_before_the_next_chunk(params):
    """A sample of 16 tokens, and two of 12, one after the other, asked for as by parallel roles."""
    engine = LocalEngine(MODEL, (), dataclasses.replace(CONFIG, slots=4))
    engine.push_weights("shared", PolicyWeights(params), version=7)

    async def one(n):
        return await engine.sample(request([n], n, k=1, max_tokens=n))

    async def programs():  # as the player awaits them, also of a task that runs none
        return ()

    async def turns(*lengths):
        for n in lengths:
            await asyncio.gather(one(n))
            for _ in range(2):  # roles
                await asyncio.gather(programs(), programs())

    async def everything():
        await asyncio.gather(turns(16), turns(12, 12))

    asyncio.run(everything())
    assert engine.usage.tokens == 16 + 2 * 12
    assert engine.usage.slot_steps == 4 * 2 * 12


@pytest.mark.thorough
def test_the_number_of_rows_changes_no_token(engine, params):
    requests = many(7)
    wanted = draw(engine, *requests)
    for rows, others in (
        (3, {}),
        (32, {"chunk": 3, "prefill": 64, "page": 4}),
        (12, {"page": 6}),
        (12, {"page": 1}),
    ):
        other = LocalEngine(MODEL, (STOP,), dataclasses.replace(CONFIG, slots=rows, **others))
        other.push_weights("shared", PolicyWeights(params), version=7)
        for ours, expected in zip(draw(other, *requests), wanted, strict=True):
            for sample, same in zip(ours, expected, strict=True):
                assert sample.tokens == same.tokens
                np.testing.assert_allclose(sample.logprobs, same.logprobs, **PARITY)


@pytest.mark.thorough
@pytest.mark.parametrize("tight", [{"answer_cache": 24}, {"prompt_cache": 32}], ids=str)
def test_too_little_memory_takes_longer_and_gives_the_same_bytes(engine, params, tight):
    """Answers of 16 tokens in pages of 8, of which there are three; a cache of a single longest prompt."""
    requests = [dataclasses.replace(r, sampling=Sampling(max_tokens=16)) for r in many(9)]
    poor = LocalEngine(MODEL, (STOP,), dataclasses.replace(CONFIG, **tight))
    poor.push_weights("shared", PolicyWeights(params), version=7)
    assert draw(poor, *requests) == draw(engine, *requests)
    assert poor.usage.slot_steps > engine.usage.slot_steps


def test_requests_that_come_while_others_draw_give_the_same_bytes(engine):
    """Each asks after a random number of turns of the event loop, and some ask again in between."""
    requests = many(9)

    async def late(one, turns):
        for _ in range(turns):
            await asyncio.sleep(0.002)
        return await engine.sample(one)

    async def everything():
        return await asyncio.gather(*(late(r, i * 7 % 11) for i, r in enumerate(requests)))

    assert asyncio.run(everything()) == draw(engine, *requests)


def test_a_push_in_between_leaves_no_mixture(engine, params):
    """What was being drawn begins again: all samples are those of one version's weights."""
    requests = [request([i], i, max_tokens=200) for i in range(6)]
    other = jax.tree.map(lambda x: x * 1.5, params)

    async def everything():
        answers = asyncio.gather(*map(engine.sample, requests))
        await asyncio.sleep(0.05)
        engine.push_weights("shared", PolicyWeights(other), 8)
        return await answers

    mixed = asyncio.run(everything())
    of_8 = draw(engine, *requests)
    engine.push_weights("shared", PolicyWeights(params), 7)
    of_7 = draw(engine, *requests)
    for samples, new, old in zip(mixed, of_8, of_7, strict=True):
        assert samples == (new if samples[0].version == 8 else old)
    assert any(samples[0].version == 8 for samples in mixed)


def test_what_nobody_waits_for_makes_room(engine):
    """Cancelled requests, also those that never got a row, leave nothing behind."""
    requests = many()

    async def everything():
        tasks = [
            asyncio.create_task(engine.sample(dataclasses.replace(r, sampling=Sampling(max_tokens=200))))
            for r in many()
        ]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        return await asyncio.gather(*map(engine.sample, requests))

    assert asyncio.run(everything()) == draw(engine, *requests)
    assert engine.idle


def test_a_deadline_ends_a_request_with_errors_for_what_is_not_complete(params):
    engine = LocalEngine(MODEL, (), dataclasses.replace(CONFIG, deadline_s=0.001))
    engine.push_weights("shared", PolicyWeights(params), version=7)
    (samples,) = draw(engine, request([1], max_tokens=500))
    assert {s.finish for s in samples} == {"error"} and {s.tokens for s in samples} == {()}


def test_an_error_while_drawing_reaches_whoever_waits(engine, monkeypatch):
    monkeypatch.setattr(Lane, "draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw(engine, request([1]), request([2], 1))
    monkeypatch.undo()
    assert draw(engine, request([1]))[0][0].version == 7


@pytest.mark.thorough
@pytest.mark.parametrize("mesh", [MeshConfig(data=4), MeshConfig(data=2, fsdp=2, tensor=2)], ids=str)
def test_a_mesh_gives_the_same(engine, params, mesh):
    on_mesh = mesh.build()
    spread = LocalEngine(MODEL, (STOP,), CONFIG, on_mesh)
    placed = jax.device_put(params, parameter_shardings(params, on_mesh, MODEL.family.axes))
    spread.push_weights("shared", PolicyWeights(placed), version=7)
    for ours, expected in zip(draw(spread, *many(6)), draw(engine, *many(6)), strict=True):
        for sample, other in zip(ours, expected, strict=True):
            assert (sample.tokens, sample.finish) == (other.tokens, other.finish)
            np.testing.assert_allclose(sample.logprobs, other.logprobs, **PARITY)


@pytest.mark.thorough
def test_the_kernel_gives_the_same():
    """Interpreted; whole answers of two pages, on prompts of up to two."""
    config = LocalEngineConfig(slots=12, page=16, max_prompt=32, prompt_cache=256, prefill=16)
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    drawn = []
    for attention, on_mesh in (("tiles", None), ("fused", None), ("fused", mesh)):
        model = transformer(
            dataclasses.replace(MODEL.architecture, head_size=16), 64, Compute(attention=attention)
        )
        engine = LocalEngine(model, (STOP,), config, on_mesh)
        engine.push_weights("shared", PolicyWeights(init_params(model, jax.random.key(0))), 0)
        requests = (request(list(range(4, 4 + n)), n, max_tokens=32) for n in (3, 9, 20))
        drawn.append([sample for group in draw(engine, *requests) for sample in group])
        (shape,) = engine.shapes
        assert shape.sizes.fused == (attention == "fused")
    for expected, *fused in zip(*drawn, strict=True):
        for sample in fused:
            assert sample.tokens == expected.tokens
            np.testing.assert_allclose(sample.logprobs, expected.logprobs, **PARITY)


def test_float32_is_multiplied_in_float32(params, engine):
    """On every device: what JAX lowers asks for it."""
    draw(engine, request([5]))
    (program,) = engine.lowered()
    text = program.as_text()
    assert "module @jit_decode" in text  # by its name in profiles
    products = re.findall(r"stablehlo.dot_general.*", text)
    assert products and all("precision = [HIGHEST, HIGHEST]" in product for product in products)


def test_shards_exchange_who_is_done_and_nothing_else(params):
    """Four of them on four devices: of what decoding computes, no float crosses devices."""
    mesh = MeshConfig(data=4).build()
    engine = LocalEngine(MODEL, (STOP,), CONFIG, mesh)
    placed = jax.device_put(params, parameter_shardings(params, mesh, MODEL.family.axes))
    engine.push_weights("shared", PolicyWeights(placed), version=7)
    draw(engine, *many(6))
    (program,) = engine.lowered()
    text = program.compile().as_text()
    exchanged = re.findall(r"= (\S+) (?:all-gather|all-reduce|all-to-all|collective-permute)\(", text)
    assert exchanged and not any(shape.startswith(("f32", "bf16", "(")) for shape in exchanged)


def test_nothing_recompiles_for_another_length_temperature_or_number_of_requests(engine):
    draw(engine, *many())
    counter = CompileCounter()
    draw(engine, *many(3))
    draw(engine, request([1] * 17, temperature=0.3, max_tokens=5), request([2] * 4))
    draw(engine, request([1], temperature=0.0, max_tokens=7))
    assert counter.count == 0
