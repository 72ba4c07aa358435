"""A step of the real ``Trainer`` on scripted samples, against the same step in plain NumPy (oracle.py)."""

import collections
import dataclasses

import jax
import numpy as np
import oracle
import pytest
import tape
from fakes import PARITY, Answering, CharTokenizer, Sum, by_path, of_policy

from atgrpo_jax.common.types import Outcome, Reward, Sample, seed_of
from atgrpo_jax.credit.groups import CreditConfig
from atgrpo_jax.models.config import Architecture, RopeScaling
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.lora import LoraConfig
from atgrpo_jax.models.transformer import init_params
from atgrpo_jax.rollout.evaluation import EvaluationConfig
from atgrpo_jax.rollout.rollout import RolloutConfig
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.update.batch import BatchConfig
from atgrpo_jax.update.objectives import LossConfig
from atgrpo_jax.update.optimizer import OptimizerConfig

SMALL = {"width": 8, "mlp_width": 12, "heads": 4, "kv_heads": 2, "vocab_size": 128}
MODELS = {
    "qwen3": Architecture(**SMALL, layers=1, head_size=4),
    "qwen2": Architecture(**SMALL, layers=2, head_size=2, family="qwen2", tied=False),
    "llama": Architecture(
        **SMALL, layers=1, head_size=2, family="llama", rope_theta=100.0,
        rope_scaling=RopeScaling(4.0, 1.0, 3.0, 16),
    ),
}  # fmt: skip
SHAPES = {
    "qwen3": oracle.Shape(1, 4, 2, 4),
    "qwen2": oracle.Shape(2, 4, 2, 2),
    "llama": oracle.Shape(1, 4, 2, 2, theta=100.0, llama3=(4.0, 1.0, 3.0, 16)),
}
ROLES, TURNS, INSTANCES, CANDIDATES, LONGEST = ("a", "bb"), 2, 4, 3, 9


def rewards(text):
    """Team and local."""
    return float(int(text) % 3), (int(text) * 37 % 101) / 25


def content(said, role):
    return role + ",".join(said)


@dataclasses.dataclass(frozen=True)
class Marks(Sum):
    """Never over before its turns are; what was executed is in later prompts."""

    workflow: Workflow = Workflow(order=ROLES, turns=TURNS)

    def initial(self, instance):
        return (str(instance),)

    def prompt(self, state, role):
        return [{"role": "user", "content": content(state, role)}]

    def act(self, state, role, text):
        team, local = rewards(text)
        return Transition((*state, text), Reward.of(team, mark=local), Outcome.OK, False, False)


def script(instance, episode, turn, role, k):
    """(text, how it ended, what the sampler's logprobs are off by) of a sample."""
    rng = np.random.default_rng([instance, episode, turn, len(role), k])
    text = "".join(map(str, rng.integers(0, 10, rng.integers(1, 7))))
    finish = "length" if rng.random() < 0.15 else "stop"
    if (instance, role) == (1, "bb"):
        text, finish = "7", "stop"  # so that the group has no signal
    if (instance, turn, k) == (2, 1, 1):
        finish = "error"
    return text, finish, rng.uniform(-1.6, 0.7, LONGEST)


def ids(text, finish):
    return tuple(map(ord, text)) + ((0,) if finish == "stop" else ())


def sampler(shape, temperature):
    """An engine that says what the script says, with the logprobs of the weights that it was given, as the
    oracle computes them, off by what the script says."""

    def answer(engine, request):
        weights = engine.weights[request.policy]
        values = by_path(weights.params) | by_path(weights.adapter or {})
        p = {path: tape.node(x) for path, x in values.items()}
        samples = []
        for address in request.addresses:
            key = address.group
            text, finish, off = script(key.instance, key.episode, key.turn, key.role, address.k)
            version = engine.version(request.policy)
            if finish == "error":
                samples.append(Sample((), (), "error", version))
                continue
            tokens = ids(text, finish)
            own, _ = oracle.logprobs(p, shape, request.prompt_ids, tokens, temperature, weights.scale)
            samples.append(Sample(tokens, tuple(own.value + off[: len(tokens)]), finish, version))
        return samples

    return answer


def play(alpha, tree, exclude, first=0):
    """Episodes, each a list of (role, prompt, K samples, K rewards); None for what is excluded.

    With ``first`` a group is cut there if these do not differ.
    """
    for instance in range(INSTANCES):
        for episode in range(1 if tree else CANDIDATES):
            said, groups = [str(instance)], []
            for turn in range(TURNS):
                for role in ROLES:
                    drawn = [
                        script(instance, episode, turn, role, k) for k in range(CANDIDATES if tree else 1)
                    ]
                    mixed = [
                        None if finish in exclude else alpha * rewards(text)[0] + rewards(text)[1]
                        for text, finish, _ in drawn
                    ]
                    if first and len(set(mixed[:first]) - {None}) < 2:
                        drawn, mixed = drawn[:first], mixed[:first]
                    groups.append((role, tuple(map(ord, content(said, role))), drawn, mixed))
                    best = max((m for m in mixed if m is not None), default=None)
                    if best is None:
                        break
                    (executed,) = {d[0] for d, m in zip(drawn, mixed, strict=True) if m == best}
                    said.append(executed)
                else:
                    continue
                break
            yield instance, groups, best


def credited(x, exclude, memory):
    """(role, prompt, K samples, K advantages) of each group, advantages None where nothing is trained."""
    rule, items = x.credit, []
    sets = collections.defaultdict(dict)  # by name: rewards by what is compared
    for number, (instance, groups, complete) in enumerate(
        play(x.team.alpha, x.rollout.mode == "tree", exclude, x.rollout.first_candidates)
    ):
        for place, (role, prompt, drawn, rewarded) in enumerate(groups):
            if rule.reward == "return" or rule.baseline == "instance":
                rewarded = [None if complete is None else sum(mixed for *_, (mixed,) in groups)]
            names = {"group": (number, place), "instance": instance, "instance_role": (instance, role)}
            units = [
                number if rule.baseline == "instance" else (number, place, k) for k in range(len(rewarded))
            ]
            name = names.get(rule.baseline, role)
            sets[name].update(zip(units, rewarded, strict=True))
            items.append((role, prompt, drawn, name, units))
    given = {}
    for name, values in sets.items():
        rewarded = list(values.values())
        if rule.baseline == "running":
            found = [None if r is None else r - memory[name] for r in rewarded]
        else:
            found = oracle.advantages(rewarded, rule.normalise, rule.leave_one_out)
            if x.rollout.first_candidates:
                share = oracle.share_of_starts_that_differ(rewarded, x.rollout.first_candidates)
                found = [None if a is None else a / share for a in found]
        given[name] = dict(zip(values, found, strict=True))
    for role, prompt, drawn, name, units in items:
        yield role, prompt, drawn, [given[name][unit] for unit in units]


CASES = {
    "the defaults": {},
    "mean over tokens": {"loss": {"aggregate": "token"}, "team": {"alpha": 0.0}},
    "a divisor of all, no deviation": {"loss": {"aggregate": "constant"}, "credit": {"normalise": "mean"}},
    "whole trajectories": {
        "rollout": {"mode": "trajectories", "exclude": ("truncated", "engine_error")},
        "credit": {"baseline": "instance"},
        "team": {"alpha": 2.5},
    },
    "each role's returns of an instance": {
        "rollout": {"mode": "trajectories"},
        "credit": {"baseline": "instance_role", "reward": "return"},
    },
    "the others of a role in the step": {
        "credit": {"baseline": "role", "normalise": "mean", "leave_one_out": True},
        "team": {"alpha": 0.5},
    },
    "a running mean": {
        "rollout": {"exclude": ("truncated", "engine_error")},
        "credit": {"baseline": "running", "normalise": "mean"},
        "memory": {"a": 2.5, "bb": -0.5},
    },
    "the third candidate where the first two differ": {
        "rollout": {"first_candidates": 2, "exclude": ("truncated", "engine_error")},
        "team": {"alpha": 0.5},
    },
    "truncated answers excluded": {
        "rollout": {"exclude": ("truncated", "engine_error")},
        "team": {"alpha": 2.5},
    },
    "cooler": {"rollout": {"temperature": 0.6}, "loss": {"minibatches": 4}},
    "minibatches and epochs": {"loss": {"minibatches": 3, "epochs": 2}},
    "rows of two tiles": {"batch": {"row_tokens": 128, "rows": 2}},
    "clip higher, no dual clip, gradients clipped": {
        "loss": {"clip_low": 0.1, "clip_high": 0.4, "dual_clip": None},
        "optimizer": {"weight_decay": 0.3, "clip_norm": 0.05},
    },
    "distance to the start": {"loss": {"kl": 0.5, "epochs": 3}, "rollout": {"temperature": 0.8}},
    "entropy, dual clip early": {
        "folder": "llama",
        "loss": {"entropy": 0.3, "dual_clip": 1.2},
        "credit": {"normalise": "mean"},
        "rollout": {"temperature": 1.3},
    },
    "corrected": {"loss": {"correction": 1.3, "minibatches": 2}, "rollout": {"temperature": 0.8}},
    "biases, two layers, a head, a falling rate": {
        "folder": "qwen2",
        "loss": {"epochs": 4},
        "optimizer": {"warmup": 2, "decay": 2, "final": 0.5},
        "schedule": (1 / 3, 2 / 3, 1.0, 0.75),
    },
    "muon": {"optimizer": {"algorithm": "muon", "momentum": 0.8}, "loss": {"minibatches": 2}},
    "an adapter a role": {
        "team": {"sharing": "lora", "rates": {"bb": 0.5}},
        "loss": {"epochs": 2, "kl": 0.2, "entropy": 0.1},
        "optimizer": {"learning_rate": 0.02},
    },
    "a policy a role, all at once": {
        "team": {"sharing": "full", "rates": {"bb": 0.5}, "alpha": 0.5},
        "loss": {
            "clip_low": 0.15, "clip_high": 0.3, "dual_clip": 2.0, "aggregate": "token", "kl": 0.2,
            "entropy": 0.1, "correction": 1.5, "minibatches": 2, "epochs": 2,
        },
        "rollout": {"temperature": 0.7},
        "optimizer": {"clip_norm": 0.3},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of each model, with numbers that nothing is small or equal in."""
    rng, made = np.random.default_rng(0), {}
    for name, config in MODELS.items():
        shapes = jax.eval_shape(lambda c=config: init_params(transformer(c, 128), jax.random.key(0)))
        drawn = jax.tree_util.tree_map_with_path(
            lambda path, leaf: np.float32((path[-1].key == "scale") + 0.3 * rng.standard_normal(leaf.shape)),
            shapes,
        )
        made[name] = str(tmp_path_factory.mktemp("models") / name)
        hf.save(made[name], drawn, hf.description(config, 128, (0,)))
    return made


def experiment(case, folder):
    temperature = case.get("rollout", {}).get("temperature", 1.0)
    shape = SHAPES[case.get("folder", "qwen3")]
    optimizer = {"learning_rate": 0.005, "epsilon": 1e-3, "weight_decay": 0.05, "clip_norm": 100.0}
    sizes = {"instances": INSTANCES, "candidates": CANDIDATES, "max_tokens": LONGEST}
    return Experiment(
        task=Marks(),
        team=Team(**case.get("team", {})),
        tokenizer=CharTokenizer(),
        model=hf.architecture(folder),
        pretrained=folder,
        lora=LoraConfig(rank=2, alpha=5.0),
        engine=Answering(answer=sampler(shape, temperature)),
        rollout=RolloutConfig(**sizes | case.get("rollout", {})),
        credit=CreditConfig(**case.get("credit", {})),
        batch=BatchConfig(**{"row_tokens": 64, "rows": 4} | case.get("batch", {})),
        loss=LossConfig(**{"minibatches": 1} | case.get("loss", {})),
        optimizer=OptimizerConfig(**optimizer | case.get("optimizer", {})),
        warm_start=None,
        evaluation=EvaluationConfig(instances=1, validation_instances=1, every=0),
        max_logprob_gap=10.0,
        gate=False,
    )


def expected(x, case, policy, roles, start, base):
    """The oracle's parameters and metrics of one policy after the first step."""
    exclude = {"error"} | ({"length"} if "truncated" in x.rollout.exclude else set())
    items = []
    shape = SHAPES[case.get("folder", "qwen3")]
    p = {path: tape.node(value) for path, value in (base | start).items()}
    scale = x.lora.scale if base else 0.0
    for role, prompt, drawn, advantages in credited(x, exclude, case.get("memory", {})):
        answers = []
        for (text, finish, off), advantage in zip(drawn, advantages, strict=True):
            if role in roles and advantage is not None:
                tokens = ids(text, finish)
                own, _ = oracle.logprobs(p, shape, prompt, tokens, x.rollout.temperature, scale)
                answers.append(oracle.Answer(tokens, tuple(own.value + off[: len(tokens)]), advantage))
        if answers:
            items.append(oracle.Prompt(prompt, tuple(answers)))
    batches, loss = [], x.loss
    for epoch in range(loss.epochs):
        order = np.random.default_rng([seed_of("minibatches", x.seed, 1), epoch]).permutation(len(items))
        batches += [[items[i] for i in part] for part in np.array_split(order, loss.minibatches)]
    same = ("clip_low", "clip_high", "dual_clip", "aggregate", "entropy", "kl", "correction")
    settings = oracle.Loss(
        **{name: getattr(loss, name) for name in same},
        constant=LONGEST,
        temperature=x.rollout.temperature,
    )
    schedule = case.get("schedule")
    o = x.optimizer
    optimizer = oracle.Optimizer(
        o.learning_rate,
        schedule.__getitem__ if schedule else lambda update: 1.0,
        o.b1, o.b2, o.epsilon, o.weight_decay, o.clip_norm,
        muon=(lambda path: path.endswith("kernel")) if o.algorithm == "muon" else None,
        momentum=o.momentum,
    )  # fmt: skip
    optimizer = dataclasses.replace(optimizer, rate=o.learning_rate * x.team.rates.get(policy, 1.0))
    return oracle.trained(shape, start, batches, settings, optimizer, base, scale)


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_a_step_of_the_trainer_is_that_of_the_formulas(name, folders, tmp_path):
    case = CASES[name]
    x = experiment(case, folders[case.get("folder", "qwen3")])
    with Stages(x, RunFolder(tmp_path)) as stages:
        team = stages.begin()._replace(memory=case.get("memory", {}))
        start = {policy: by_path(state.params) for policy, state in team.policies.items()}
        base = by_path(team.base or {})
        episodes, _ = stages.rollouts.play(1)
        team, learned = stages.learner.update(team, stages.credit(team, episodes)[1], 1)
        after = {policy: by_path(state.params) for policy, state in team.policies.items()}
    for policy in x.policies:
        roles = [role for role in ROLES if x.team.policy(role) == policy]
        params, metrics = expected(x, case, policy, roles, start[policy], base)
        for key, value in metrics.items():
            np.testing.assert_allclose(of_policy(learned, policy, key), value, err_msg=key, **PARITY)
        assert params.keys() == after[policy].keys()
        for path, value in params.items():
            np.testing.assert_allclose(after[policy][path], value, err_msg=path, **PARITY)
            assert np.abs(value - start[policy][path]).max() > 1e-4, f"{path} stayed as it was"


def test_the_oracles_derivatives_are_those_of_its_values():
    """Along five random directions, by central differences; everything that the loss knows is on."""
    rng, shape = np.random.default_rng(0), dataclasses.replace(SHAPES["qwen3"], llama3=(4.0, 1.0, 3.0, 16))
    sizes = {
        "embedding": (12, 8), "norm/scale": (8,), "head": (8, 12),
        **{f"layer_0/{name}/scale": (8,) for name in ("attention_norm", "mlp_norm")},
        **{f"layer_0/{name}_norm/scale": (4,) for name in "qk"},
        **{f"layer_0/{name}/kernel": (8, n) for name, n in (("q", 16), ("k", 8), ("v", 8))},
        **{f"layer_0/{name}/bias": (n,) for name, n in (("q", 16), ("k", 8), ("v", 8))},
        "layer_0/o/kernel": (16, 8), "layer_0/q/a": (8, 2), "layer_0/q/b": (2, 16),
        "layer_0/gate/kernel": (8, 12), "layer_0/up/kernel": (8, 12), "layer_0/down/kernel": (12, 8),
    }  # fmt: skip
    params = {path: 0.5 * rng.standard_normal(size) for path, size in sizes.items()}
    answers = [oracle.Answer((3, 4, 5), (0.0,) * 3, 1.3), oracle.Answer((1, 7), (0.0,) * 2, -0.7)]
    groups = [oracle.Prompt((1, 2), tuple(answers)), oracle.Prompt((9, 8, 2), tuple(answers[:1]))]
    loss = oracle.Loss(entropy=0.3, kl=0.4, temperature=0.7, aggregate="token")
    off = {len(a.tokens): rng.uniform(-1.6, 0.7, len(a.tokens)) for a in answers}
    start = {path: tape.node(x) for path, x in params.items()}
    own = {
        (g, a): oracle.logprobs(start, shape, g.tokens, a.tokens, 0.7, 2.5)[0].value
        for g in groups
        for a in g.answers
    }

    def value(params):
        p = {path: tape.node(x) for path, x in params.items()}
        total = tape.node(0.0)
        for group in groups:  # one after the other, as an answer of both has old logprobs in each
            part, _ = oracle.objective(
                loss, [group],
                lambda g, a: oracle.logprobs(p, shape, g.tokens, a.tokens, loss.temperature, 2.5),
                lambda a, group=group: own[group, a] + off[len(a.tokens)],
                lambda a, group=group: own[group, a] - 0.3,
            )  # fmt: skip
            total = total + part
        return total, p

    total, p = value(params)
    found = dict(zip(params, tape.gradients(total, [p[path] for path in params]), strict=True))
    for _ in range(5):
        way = {path: rng.standard_normal(x.shape) for path, x in params.items()}
        ahead, behind = (
            float(value({path: x + h * way[path] for path, x in params.items()})[0].value)
            for h in (1e-6, -1e-6)
        )
        slope = sum((found[path] * way[path]).sum() for path in params)
        assert abs(slope) > 1e-2
        np.testing.assert_allclose((ahead - behind) / 2e-6, slope, rtol=1e-6)
