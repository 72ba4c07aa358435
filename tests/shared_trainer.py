"""What the tests of the trainer share: a small experiment whose engine answers by a script."""

import dataclasses

import oracle
import tape
from fakes import Answering, CharTokenizer, Sum, by_path

from atgrpo_jax.common.types import Outcome, Reward, Sample
from atgrpo_jax.credit.groups import CreditConfig
from atgrpo_jax.models.config import Architecture
from atgrpo_jax.rollout.evaluation import EvaluationConfig
from atgrpo_jax.rollout.rollout import RolloutConfig
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.tasks.protocol import Transition
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.update.batch import BatchConfig
from atgrpo_jax.update.objectives import LossConfig
from atgrpo_jax.update.optimizer import OptimizerConfig

MODEL = Architecture(layers=1, width=8, mlp_width=12, heads=2, kv_heads=1, head_size=4)
TOKENIZER = CharTokenizer()  # one for all, as its name in a run's identity is its place in memory
SHAPE = oracle.Shape(1, 2, 1, 4)
TEXTS = "30", "12", "51"  # of the three candidates: local part, then team part


@dataclasses.dataclass(frozen=True)
class Paid(Sum):
    """A text says what it is paid: its first digit the role, its last one the team. Solved by "9"."""

    workflow: Workflow = Workflow(order=("a", "b"), turns=1)

    def initial(self, instance):
        return (str(instance),)

    def prompt(self, state, role):
        return [{"role": "user", "content": role + "".join(state)}]

    def act(self, state, role, text):
        reward = Reward.of(float(text[-1]), digit=float(text[0]))
        return Transition((*state, text), reward, Outcome.OK, text == "9", text == "9")


def fixed(engine, request, texts=lambda step: TEXTS):
    """The same three texts for everybody; the last one is cut."""
    samples = []
    for address in request.addresses:
        drawn = texts(address.group.step)
        text = drawn[max(address.k, address.group.episode)]
        tokens = tuple(map(ord, text)) + ((0,) if text != drawn[-1] else ())
        finish = "stop" if text != drawn[-1] else "length"
        samples.append(Sample(tokens, (-1.0,) * len(tokens), finish, engine.versions.get(request.policy, 0)))
    return samples


def honest(off=0.0, texts=lambda step: TEXTS):
    """The same texts, with logprobs by the weights that the engine holds, at the request's temperature."""

    def answer(engine, request):
        weights = by_path(engine.weights[request.policy].params)
        p = {path: tape.node(value) for path, value in weights.items()}
        samples = []
        for sample in fixed(engine, request, texts):
            temperature = request.sampling.temperature
            own, _ = oracle.logprobs(p, SHAPE, request.prompt_ids, sample.tokens, temperature)
            samples.append(dataclasses.replace(sample, logprobs=tuple(own.value + off)))
        return samples

    return answer


def experiment(answer=fixed, **changes):
    settings = {
        "rollout": RolloutConfig(instances=2, candidates=3, max_tokens=4),
        "evaluation": EvaluationConfig(instances=3, validation_instances=2, every=0),
        "credit": CreditConfig(normalise="mean"),
        "loss": LossConfig(minibatches=1),
        "optimizer": OptimizerConfig(learning_rate=0.05),
    }
    return Experiment(
        task=Paid(), tokenizer=TOKENIZER, model=MODEL, engine=Answering(answer=answer),
        batch=BatchConfig(row_tokens=32, rows=4), warm_start=None, gate=False,
        **settings | changes,
    )  # fmt: skip
