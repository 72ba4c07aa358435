"""Defines work of a fixed size: groups of random prompts, drawn by the engine and trained."""

import asyncio
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from atgrpo_jax.common import coroutines
from atgrpo_jax.common.types import Address, Candidate, Group, GroupKey, Origin, Outcome, Sample, Sampling
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.engines.local.local import LocalEngineConfig
from atgrpo_jax.engines.protocol import Engine, Request
from atgrpo_jax.models.config import Architecture, Compute
from atgrpo_jax.planning.times import work
from atgrpo_jax.planning.workload import Workload
from atgrpo_jax.update.batch import BatchConfig, whole_tiles

POLICY = "shared"


@dataclasses.dataclass(frozen=True)
class Item:
    """Says how many groups there are, of which lengths, and which model draws and learns them."""

    model: Architecture
    compute: Compute = Compute()
    prompts: int = 8
    candidates: int = 8  # of each prompt
    prompt_tokens: int = 64
    new_tokens: int = 64  # nothing stops early
    rows: int = 2  # groups of a micro-batch
    stop_every: int = 0  # for rollouts: one in so many ids ends a sample

    @property
    def vocab_size(self) -> int:
        assert self.model.vocab_size is not None
        return self.model.vocab_size

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return tuple(range(0, self.vocab_size, self.stop_every)) if self.stop_every else ()

    def engine(self, rows: int = 64) -> LocalEngineConfig:
        """Returns an engine with pages of a quarter of a prompt, but not of few tokens."""
        page = max(self.prompt_tokens // 4, 64)
        return LocalEngineConfig(slots=rows, max_prompt=self.prompt_tokens, page=page, prefill=2 * page)

    @property
    def tokens(self) -> int:
        """Counts the tokens of all candidates, each with its prompt, as trainers do that share no prompts."""
        return self.prompts * self.candidates * (self.prompt_tokens + self.new_tokens)

    @property
    def new(self) -> int:
        return self.prompts * self.candidates * self.new_tokens

    def batch(self) -> BatchConfig:
        """Returns the shape of batches with a row for each group."""
        tokens = self.prompt_tokens + self.candidates * self.new_tokens
        return BatchConfig(whole_tiles(tokens), self.rows)

    def prompt_ids(self, seed: int) -> list[tuple[int, ...]]:
        shape = self.prompts, self.prompt_tokens
        drawn = np.random.default_rng(seed).integers(0, self.vocab_size, shape)
        return [tuple(ids) for ids in drawn.tolist()]

    def random_samples(self, seed: int) -> list[list[Sample]]:
        """Returns K answers for each prompt."""
        shape = self.prompts, self.candidates, self.new_tokens
        logprobs = (-math.log(self.vocab_size),) * self.new_tokens
        drawn = np.random.default_rng(seed).integers(0, self.vocab_size, shape).tolist()
        return [[Sample(tuple(tokens), logprobs, "length", 0) for tokens in group] for group in drawn]

    def drawn(self, engine: Engine, step: int) -> list[Sequence[Sample]]:
        """Returns K answers of the engine to each prompt of ``step``."""

        async def everything() -> list[Sequence[Sample]]:
            requests = [self._request(i, ids, step) for i, ids in enumerate(self.prompt_ids(step))]
            return await asyncio.gather(*map(engine.sample, requests))

        return coroutines.run(everything())

    def _request(self, index: int, prompt_ids: tuple[int, ...], step: int) -> Request:
        key = GroupKey(step, "train", index, 0, 0, "role")
        addresses = tuple(Address(0, key, k) for k in range(self.candidates))
        return Request(POLICY, prompt_ids, addresses, Sampling(1.0, self.new_tokens))

    def credited(
        self, seed: int, prompts: Sequence[tuple[int, ...]], drawn: Sequence[Sequence[Sample]]
    ) -> list[Credited]:
        """Returns groups with random advantages, so that every token trains."""
        rng = np.random.default_rng(seed)
        K = self.candidates
        key = GroupKey(0, "train", 0, 0, 0, "role")
        sampling = Sampling(1.0, self.new_tokens)
        items = []
        for prompt, samples in zip(prompts, drawn, strict=True):
            origin = Origin(key, prompt, "", POLICY, 0, sampling)
            group = Group(tuple(Candidate(origin, s, "", Outcome.OK, None) for s in samples), 0)
            items.append(Credited(group, rng.standard_normal(K).astype(np.float32), np.ones(K, bool)))
        return items

    def gflop(self) -> dict[str, float]:
        """Returns what has to be done, by phase, forward and backward for the update.

        Prompts count once a group, attention for what a token sees, the head on sampled tokens only.
        """
        P, N, K = self.prompt_tokens, self.new_tokens, self.candidates
        workload = Workload(self.prompts, P, P, N, K, N, P + K * N)
        flop = work(self.model, self.compute, self.vocab_size, workload, self.prompts)
        done = {phase: amount / 1e9 for phase, amount in flop.items()}
        return done | {"step": sum(done.values())}
