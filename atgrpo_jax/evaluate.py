"""Scores a team on held-out instances: that of a run, or model folders.

python -m atgrpo_jax.evaluate --run_dir=RUN [--step=N] [--against=STEP] [--swap=ROLE,ROLE] [--gin_param=...]
python -m atgrpo_jax.evaluate --model=FOLDER --gin_file=plan.gin [--gin_param=...] [--against=FOLDER]
python -m atgrpo_jax.evaluate --model=ROLE=FOLDER,ROLE=FOLDER --gin_file=plan.gin [--against=...]

A folder alone plays all roles. Folders by role or policy are a team; they share a tokenizer. A folder
may hold a PEFT adapter, as ``export`` writes them; ``--base`` names its base if that is not where it was.
``--against`` plays a second team on the same instances and prints the paired difference. ``--swap`` has
two roles of the first team speak with each other's policies; the second one's stay.
What a run's partners answered is used again where they are asked the same. What they are asked now is
recorded in the run folder, too.

``--gin_param`` may change a run's task, evaluation and sandbox:
--gin_param='math.Math.files = {"test": "aime25.jsonl"}'.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

from absl import flags

from atgrpo_jax.arrays.mesh import parse_mesh
from atgrpo_jax.common.cli import compiled_flag, gin_files, gin_flags, mesh_flag, run_main, typed
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.files import Place, append_json_line
from atgrpo_jax.common.progress import say
from atgrpo_jax.engines import gate
from atgrpo_jax.models.transformer import PolicyWeights
from atgrpo_jax.partners.opening import opened
from atgrpo_jax.rollout.evaluation import Score, difference, drawn_by
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.compiled import keep_compiled
from atgrpo_jax.run.episodes import written
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.folder_teams import bases, cast, played, team_weights
from atgrpo_jax.run.rescoring import check_rescored, check_swap, swapped
from atgrpo_jax.run.saved import SavedRun, moved
from atgrpo_jax.run.scoring import held_out, scored
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.tasks.splits import SPLITS
from atgrpo_jax.tokens.tokens import Tokenizer

_GIN_FILE, _GIN_PARAM = gin_flags()
_RUN_DIR = flags.DEFINE_string("run_dir", None, "The run folder. E.g. --run_dir=runs/plan")
_MESH = mesh_flag()
_COMPILED = compiled_flag()
_STEP = flags.DEFINE_string(
    "step",
    None,
    "Which checkpoint of the run: a number, or best, by validation; the newest if it is not given. "
    "E.g. --step=70 or --step=best",
)
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "A Hugging Face model folder, instead of a run, or one for each role or policy. "
    "E.g. --model=smollm2-135m or --model=mover=trained/mover,scout=trained/scout",
)
_AGAINST = flags.DEFINE_string(
    "against",
    None,
    "Another step of the run, or other model folders (as --model), to compare with. E.g. --against=0",
)
_BASE = flags.DEFINE_string(
    "base",
    None,
    "The model folder of adapters whose own base is not where they name it. E.g. --base=smollm2-135m",
)
_SPLIT = flags.DEFINE_enum(
    "split",
    "test",
    SPLITS,
    "The split that instances are taken from. E.g. --split=validation",
)
_INSTANCES = flags.DEFINE_integer(
    "instances",
    None,
    "How many instances; the config's number for the split if it is not given. E.g. --instances=50",
    1,
)
_EPISODES = flags.DEFINE_integer(
    "episodes", 1, "How many episodes of each instance, for avg@k and pass@k. E.g. --episodes=8", 1
)
_TEMPERATURE = flags.DEFINE_float(
    "temperature",
    None,
    "Temperature of sampling, 0 for greedy; the config's if it is not given. E.g. --temperature=0",
    0.0,
)
_SWAP = flags.DEFINE_list(
    "swap",
    None,
    "Two roles of a run that speak with each other's policies: how much is a policy its role's own? "
    "E.g. --swap=scout,mover",
)
_SIZES = _INSTANCES, _EPISODES, _TEMPERATURE  # flags in whose place the config has a value

# A team to score: its name, its step (0 for a folder) and the weights of every policy.
Contender = tuple[str, int, Mapping[str, PolicyWeights]]


def main(argv: list[str]) -> None:
    files = gin_files(argv, _GIN_FILE)
    if (_RUN_DIR.value is None) == (_MODEL.value is None):
        raise ConfigError("give either --run_dir or --model, e.g. --run_dir=runs/plan")
    keep_compiled(_COMPILED.value)
    if _RUN_DIR.value is not None:
        if files:
            raise ConfigError(
                "--run_dir has a config of its own: no --gin_file; --gin_param changes single parameters"
            )
        if _BASE.value is not None:
            raise ConfigError("--base is for --model: a run has the base of its adapters")
        evaluate_run(SavedRun(_RUN_DIR.value, _MESH.value and parse_mesh(_MESH.value)))
    else:
        if _STEP.value is not None:
            raise ConfigError("--step is for --run_dir: a model folder has no steps")
        if _SWAP.value is not None:
            raise ConfigError("--swap is for --run_dir; give folders as --model=ROLE=FOLDER,ROLE=FOLDER")
        evaluate_folders(_MODEL.value, files)


def evaluate_run(saved: SavedRun) -> None:
    """Scores a run, and appends each score to its evaluations.jsonl."""
    experiment = _played(saved.experiment)
    step = saved.step_of(_STEP.value)
    teams = [(step, _SWAP.value)]
    if _SWAP.value is not None:
        check_swap(experiment, _SWAP.value)
    if _AGAINST.value is not None:
        teams.append((saved.step_of(_AGAINST.value), None))

    def contenders() -> Iterator[Contender]:
        for number, swap in teams:
            weights = saved.weights(number)
            if swap is None:
                yield f"step {number}", number, weights
            else:
                title = f"step {number}, {' and '.join(swap)} swapped"
                yield title, number, swapped(experiment, swap, weights)

    found = scores(experiment, saved.learner, contenders(), saved.folder.partners)
    for (number, swap), (score, settings) in zip(teams, found, strict=True):
        content = written(number, score.episodes, (), experiment.tokenizer, experiment.alphas)
        name = saved.folder.write_evaluation(_SPLIT.value, content)
        record = {"step": number, "gin_param": _GIN_PARAM.value} | settings | score.record()
        record |= {"swap": swap} if swap else {}
        record["flags"] = {flag.name: flag.value for flag in _SIZES if flag.present}
        record["episodes"] = f"evaluations/{name}"
        append_json_line(saved.folder.evaluations, record)
    say(f"{typed('atgrpo_jax.report')} --run_dir={saved.folder.path} shows the episodes")


def _played(trained: Experiment) -> Experiment:
    """Returns the experiment to score a run with: that of training, changed by --gin_param."""
    if not _GIN_PARAM.value:
        return trained
    experiment = gin_config.load(str(RunFolder(_RUN_DIR.value).config), _GIN_PARAM.value)
    if _MESH.value:
        experiment = moved(experiment, parse_mesh(_MESH.value))
    check_rescored(trained, experiment)
    return experiment


def evaluate_folders(model: str, files: list[str]) -> None:
    """Scores model folders: one that plays all roles, or one for each."""
    if not files:
        raise ConfigError("--model needs the --gin_file of a task, e.g. --gin_file=plan.gin")
    given = gin_config.load(files, _GIN_PARAM.value)
    if _MESH.value:
        given = moved(given, parse_mesh(_MESH.value))
    asked = {model: cast(given, "--model", model)}
    if _AGAINST.value is not None:
        asked[_AGAINST.value] = cast(given, "--against", _AGAINST.value)
    under = bases(list(asked.values()), _BASE.value)
    experiment = played(given, list(asked.values()), under)
    if len(given.policies) > len(experiment.policies):
        pairs = ",".join(f"{name}=FOLDER" for name in given.policies)
        say(
            f"{model} speaks for {', '.join(asked[model])}; the models and the sharing of the gin files do "
            f"not count. To give each policy a folder: --model={pairs}"
        )
    policies = TeamLearner(experiment)

    def contenders() -> Iterator[Contender]:
        for name in [model] if _AGAINST.value is None else [model, _AGAINST.value]:
            yield name, 0, team_weights(policies, experiment, asked[name], under)

    for _ in scores(experiment, policies, contenders()):
        pass


def scores(
    experiment: Experiment,
    policies: TeamLearner,
    contenders: Iterator[Contender],
    answers: Place | None = None,
) -> Iterator[tuple[Score, dict[str, object]]]:
    """Scores each contender in turn; prints its score, and how it differs from the first one.

    Args:
      answers: folder in which the answers of partners are recorded, if there is one.
    """
    instances = held_out(experiment, _SPLIT.value, _INSTANCES.value)
    sampling = experiment.evaluated(_TEMPERATURE.value)
    settings: dict[str, object] = {"split": _SPLIT.value, "instances": instances}
    by_role = {role: dataclasses.asdict(own) for role, own in sampling.items()}
    alike = len(set(sampling.values())) == 1
    settings |= next(iter(by_role.values())) if alike else {"sampling": by_role}
    first: Score | None = None
    with (
        opened(experiment.team.partners, answers, "evaluated", experiment.seed) as partners,
        contextlib.closing(policies.engine()) as engine,
        experiment.running() as runner,
    ):
        for name, step, weights in contenders:
            gate.push(engine, weights, step)
            title = f"{_SPLIT.value} after {name}"
            score = scored(
                experiment,
                engine,
                runner,
                partners,
                title,
                sampling=sampling,
                step=step,
                split=_SPLIT.value,
                instances=instances,
                episodes=_EPISODES.value,
            )
            print(f"{title}: {score}; {drawn_by(sampling)}", flush=True)
            if score.success == 0:
                for line in _said_first(score, experiment.tokenizer):
                    print(line, flush=True)
            if all(own.temperature == 0 for own in sampling.values()) and _EPISODES.value > 1:
                print(f"the {_EPISODES.value} episodes of an instance are equal draws: greedy", flush=True)
            for role, cost in score.spent.items():
                print(f"partner of role {role}: {cost}", flush=True)
            if first is None:
                first = score
            else:
                print(f"difference to {name}: {difference(first, score)}", flush=True)
            yield score, settings


def _said_first(score: Score, tokenizer: Tokenizer) -> Iterator[str]:
    """Yields the first prompt of the first episode and its answer, as a person can judge them.

    A score of 0 may come from a model that is not able to do it, or from one that is asked in another form.
    """
    for group in [group for group in score.episodes[0].groups if not group.by_partner][:1]:
        asked, answered = group.origin, group.candidates[0]
        yield f"nothing was solved; {asked.key.role} was first asked, without control words, at the end:"
        yield f"  {tokenizer.decode(asked.prompt_ids)[-200:]!r}"
        yield f"and it began with ({answered.outcome.value}):"
        yield f"  {answered.text[:200]!r}"


if __name__ == "__main__":
    run_main(main)
