"""Random requests, cancellations and pushes on an engine with little memory, for as long as asked: as JSON.

    python benchmarks/soak.py --seconds=1200

Every sample that comes back is compared, byte by byte, with what a quiet engine with room draws from the same
weights; exits with 1 if one differs, or if rows or pages are missing at the end. ``rss_mb``: of the process,
after a tenth of the time and at the end.
"""

import argparse
import asyncio
import random
import sys
import time
from pathlib import Path

import jax
from items import report

from atgrpo_jax.common.types import Address, GroupKey, Sampling
from atgrpo_jax.engines.local.local import LocalEngine, LocalEngineConfig
from atgrpo_jax.engines.protocol import Request
from atgrpo_jax.models.config import Architecture
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.transformer import PolicyWeights, init_params
from atgrpo_jax.run.metrics import CompileCounter

MODEL = transformer(Architecture(layers=2, width=32, mlp_width=64, heads=4, kv_heads=2, head_size=8), 64)
STOP_IDS = (3,)
ROOMY = LocalEngineConfig(slots=16, page=8, max_prompt=64, prefill=16)
# Two longest prompts, and answers of two rows in sixteen.
TIGHT = LocalEngineConfig(slots=16, page=8, max_prompt=64, prefill=16, prompt_cache=128, answer_cache=128)


def decode(ids) -> str:
    return "".join(chr(48 + i) for i in ids)


def requests(count: int) -> list[Request]:
    rng = random.Random(0)
    stems = [tuple(rng.choices(range(64), k=24)) for _ in range(4)]
    found = []
    for i in range(count):
        prompt = rng.choice(stems)[: rng.randint(1, 24)] + tuple(rng.choices(range(64), k=rng.randint(1, 40)))
        key = GroupKey(0, "train", i, 0, 0, "role")
        sampling = Sampling(
            temperature=rng.choice((0.0, 0.7, 1.0)),
            max_tokens=rng.randint(33, 64),
            top_k=rng.choice((0, 0, 5)),
            stop=rng.choice(((), (), ("A", "b"))),
        )
        addresses = tuple(Address(0, key, k) for k in range(rng.randint(3, 4)))
        found.append(Request("shared", prompt, addresses, sampling))
    return found


def engine_of(config: LocalEngineConfig) -> LocalEngine:
    return LocalEngine(MODEL, STOP_IDS, config, decode=decode)


class Soak:
    def __init__(self, seconds: float):
        self.seconds, self.rng = seconds, random.Random(1)
        self.weights = [PolicyWeights(init_params(MODEL, jax.random.key(i))) for i in range(2)]
        self.requests = requests(100)
        self.counts = dict.fromkeys(("requests", "cancelled", "pushes", "wrong"), 0)
        self.engine, self.rss = engine_of(TIGHT), [0.0, 0.0]
        self.expected = [self._quietly(weights) for weights in self.weights]

    def _quietly(self, weights: PolicyWeights) -> list:
        engine = engine_of(ROOMY)
        engine.push_weights("shared", weights, 0)

        async def everything():
            return await asyncio.gather(*map(engine.sample, self.requests))

        return [[(s.tokens, s.logprobs, s.finish) for s in samples] for samples in asyncio.run(everything())]

    async def run(self) -> None:
        self._push()
        ends, began = time.monotonic() + self.seconds, time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(24):
                tasks.create_task(self._ask(ends))
            while time.monotonic() < ends:
                await asyncio.sleep(self.rng.expovariate(1.0))
                self._push()
                if not self.rss[0] and time.monotonic() - began > self.seconds / 10:
                    self.rss[0] = rss_mb()
        self.rss[1] = rss_mb()

    def _push(self) -> None:
        self.engine.push_weights("shared", self.weights[self.counts["pushes"] % 2], self.counts["pushes"])
        self.counts["pushes"] += 1

    async def _ask(self, ends: float) -> None:
        """One after the other; some are given up."""
        while time.monotonic() < ends:
            i = self.rng.randrange(len(self.requests))
            self.counts["requests"] += 1
            patience = self.rng.expovariate(10) if self.rng.random() < 0.2 else 60.0
            try:
                samples = await asyncio.wait_for(self.engine.sample(self.requests[i]), patience)
            except TimeoutError:
                self.counts["cancelled"] += 1
                continue
            expected = self.expected[samples[0].version % 2][i]
            self.counts["wrong"] += [(s.tokens, s.logprobs, s.finish) for s in samples] != expected
            await asyncio.sleep(self.rng.choice((0.0, 0.0, 0.01)))

    def lost(self) -> list[str]:
        """What the engine does not have back."""
        lost = ["a task"] if self.engine._running else []
        for lane in self.engine._lanes.values():
            for shard in lane._shards:
                lost += ["a row"] * (lane._sizes.slots - len(shard.free))
                lost += ["an answer's page"] * (lane._sizes.answer_pages - len(shard.answer_pages))
                lost += ["a prompt's page"] * sum(map(bool, shard.prompts._readers))
        return lost


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    soak, compiles = Soak(parser.parse_args().seconds), CompileCounter()
    asyncio.run(soak.run())
    tokens = soak.engine.usage.tokens
    rss = [round(x) for x in soak.rss]
    report("soak", **soak.counts, tokens=tokens, lost=soak.lost(), compiles=compiles.count, rss_mb=rss)
    sys.exit(bool(soak.counts["wrong"] or soak.lost()))


if __name__ == "__main__":
    main()
