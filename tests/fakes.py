"""Scripted stand-ins, and builders of small values. No mocks."""

import dataclasses
import random
from typing import Any

import jax
import numpy as np

from atgrpo_jax.common.types import (
    Address,
    Candidate,
    Group,
    GroupKey,
    Origin,
    Outcome,
    Reward,
    Sample,
    Sampling,
    receipts,
)
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.engines.local.local import LocalEngineConfig
from atgrpo_jax.engines.protocol import Usage
from atgrpo_jax.models.config import Architecture
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.transformer import Transformer
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tools.probing import limits

# Tolerances of float32 parity on a CPU.
PARITY = {"rtol": limits.FUNCTION, "atol": limits.FUNCTION}
LOGITS = {"rtol": 0, "atol": limits.MODEL}  # of a whole model, against ``transformers``

SMALL = Architecture(layers=2, width=32, mlp_width=48, heads=4, kv_heads=2, head_size=8)


def small_model(vocab_size: int = 64) -> Transformer:
    return transformer(SMALL, vocab_size)


@dataclasses.dataclass(frozen=True)
class Sum:
    """A toy task: roles a and b append numbers; solved when the sum is 10, over when it is above.

    Team reward 1 if solved; local reward the number itself. Text that is no number is invalid.
    """

    workflow: Workflow = Workflow(order=("a", "b"), turns=2)

    def instance(self, split, index):
        return index

    def initial(self, instance):
        return ()

    def prompt(self, state, role):
        return [{"role": "user", "content": f"{role} {list(state)}"}]

    def act(self, state, role, text):
        if not text.isdigit():
            return Transition(state, Reward.of(0.0, invalid=-1.0), Outcome.INVALID, False, False)
        after = (*state, int(text))
        solved = sum(after) == 10
        reward = Reward.of(float(solved), number=float(text))
        return Transition(after, reward, Outcome.OK, sum(after) >= 10, solved)

    def demonstration(self, state, role, rng: random.Random):
        return str(rng.randrange(10))


@dataclasses.dataclass(frozen=True)
class Longest(Sum):
    """Even a random policy earns something: the local reward is the length of the text."""

    workflow: Workflow = Workflow(order=("scout", "mover"), turns=2)

    def prompt(self, state, role):
        return [{"role": "user", "content": f"{role} {len(state)}"}]

    def act(self, state, role, text):
        return Transition((*state, text), Reward.of(0.0, length=float(len(text))), Outcome.OK, False, False)


def say(sandbox, task, state, role, text):
    """What a role saying a text leads to, its programs run."""
    runs = []
    while programs := task.programs(state, role, text, runs):
        runs += map(sandbox.run_now, programs)
    return task.act(state, role, text, runs)


class CharTokenizer:
    """One id a character (its code point); id 0 stops."""

    vocab_size = 128
    stop_ids = (0,)

    def prompt_ids(self, messages):
        return tuple(ord(c) for m in messages for c in m["content"])

    def answer_ids(self, text):
        return (*map(ord, text), 0)

    def decode(self, ids):
        return "".join(chr(i) for i in ids if i)

    def digest(self):
        return "char"


class ScriptedEngine:
    """Answers from a script: (turn, role) -> K texts. Text None is an engine error. Records requests."""

    def __init__(self, script, version=0):
        self.script = script
        self.requests = []
        self._version = version

    async def sample(self, request):
        self.requests.append(request)
        key = request.addresses[0].group
        texts = self.script[key.turn, key.role]
        return with_receipts(request, [self._sample(text) for text in texts[: len(request.addresses)]])

    def _sample(self, text):
        if text is None:
            return Sample((), (), "error", self._version)
        finish = "length" if text.endswith("...") else "stop"
        tokens = CharTokenizer().answer_ids(text.removesuffix("..."))
        tokens = tokens if finish == "stop" else tokens[:-1]
        return Sample(tokens, (-1.0,) * len(tokens), finish, self._version)

    def push_weights(self, policy, params, version):
        self._version = version

    def version(self, policy):
        return self._version


def with_receipts(request, samples):
    """The samples, as of an engine that drew what it was asked."""
    asked = receipts(request.policy, request.prompt_ids, request.sampling, request.addresses)
    return [dataclasses.replace(s, receipt=receipt) for s, receipt in zip(samples, asked, strict=False)]


class AnsweringEngine:
    """Answers by a function of itself and the request; remembers requests and the weights it was given."""

    usage = Usage()

    def __init__(self, answer):
        self.answer, self.requests, self.weights, self.versions = answer, [], {}, {}
        self.closed = False

    async def sample(self, request):
        self.requests.append(request)
        return with_receipts(request, self.answer(self, request))

    def push_weights(self, policy, weights, version):
        self.weights[policy], self.versions[policy] = weights, version

    def version(self, policy):
        return self.versions[policy]

    def release(self):
        pass

    def close(self):
        self.closed = True


@dataclasses.dataclass(frozen=True)
class Answering(LocalEngineConfig):
    """For an experiment whose engine is an ``AnsweringEngine``; those that it built are in ``built``."""

    answer: Any = dataclasses.field(default=None, repr=False)
    built: list = dataclasses.field(default_factory=list, repr=False, compare=False)

    def build(self, served):
        self.built.append(AnsweringEngine(self.answer))
        return self.built[-1]


def of_policy(record, policy, name):
    """A policy's metric in a step's record. The only place that knows what such metrics are called."""
    return record[f"policy/{policy}/{name}"]


def by_path(tree):
    """Parameters as the oracle takes them: "layer_0/q/kernel" -> float64."""
    return {
        "/".join(key.key for key in path): np.asarray(leaf, np.float64)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


KEY = GroupKey(step=1, split="train", instance=3, episode=0, turn=0, role="a")
ORIGIN = Origin(KEY, (5, 6, 7), "state", "shared", 0, Sampling(1.0, 8))


def candidate(tokens=(1, 2), logprobs=None, reward=0.0, origin=ORIGIN, outcome=Outcome.OK, k=0):
    """Candidate ``k`` of a group, drawn as its origin says, in a run with seed 0."""
    logprobs = tuple(-0.5 - 0.1 * i for i in range(len(tokens))) if logprobs is None else logprobs
    (receipt,) = receipts(origin.policy, origin.prompt_ids, origin.sampling, [Address(0, origin.key, k)])
    sample = Sample(tuple(tokens), tuple(logprobs), "stop", origin.version, receipt=receipt)
    value = None if reward is None else Reward.of(0.0, number=reward)
    return Candidate(origin, sample, "text", outcome, value)


def group(*rewards, origin=ORIGIN, chosen=0):
    members = (candidate(reward=reward, origin=origin, k=k) for k, reward in enumerate(rewards))
    return Group(tuple(members), chosen)


def credited(
    rng: np.random.Generator, prompt: int, lengths: list[int], vocab: int = 64, trained=None
) -> Credited:
    """A group of random tokens, logprobs and advantages, with the given lengths."""
    origin = dataclasses.replace(ORIGIN, prompt_ids=tuple(rng.integers(0, vocab, prompt).tolist()))
    candidates = tuple(
        candidate(rng.integers(0, vocab, n).tolist(), (-3 * rng.random(n)).tolist(), 0.0, origin)
        for n in lengths
    )
    mask = np.ones(len(lengths), bool) if trained is None else np.asarray(trained)
    return Credited(Group(candidates, 0), rng.standard_normal(len(lengths)).astype(np.float32), mask)
