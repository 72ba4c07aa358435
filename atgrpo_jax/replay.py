"""Draws again what a run drew, plays on from there, or shows what a step taught.

    python -m atgrpo_jax.replay --run_dir=runs/plan --node=12/train/530
    python -m atgrpo_jax.replay --run_dir=runs/plan --random=20

The weights are those of that step: from the nearest checkpoint, trained forward with the recorded
groups. Each group is compared with the record: "same bytes", or the first token that differs. If one
differs, the exit code is 1.

Something may be changed at the node. Then the episode goes on from there with new draws at the same
addresses, is printed, and is written to RUN_DIR/replays/, where ``report`` finds it:

    --temperature=0               the node's groups are drawn greedily
    --execute=3                   candidate 3 is executed, whatever it earned
    --say="[R, R, D]"             this text is executed

What a step taught (the logprob of each token after it, and its weight in the updates) is
written to RUN_DIR/taught/, where ``report`` finds it:

    python -m atgrpo_jax.replay --run_dir=runs/plan --taught=12,70
"""

from absl import flags

from atgrpo_jax.arrays.mesh import parse_mesh
from atgrpo_jax.common.cli import compiled_flag, mesh_flag, refuse_arguments, run_main, typed
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.progress import counted
from atgrpo_jax.replaying.again import SAME, Again, Change, fitting
from atgrpo_jax.replaying.chosen import at_random
from atgrpo_jax.replaying.differing import findings, first_that_differs
from atgrpo_jax.replaying.kept import recorded_replay, write_replay, write_taught
from atgrpo_jax.replaying.taught import taught
from atgrpo_jax.replaying.teams import Teams
from atgrpo_jax.run.compiled import keep_compiled
from atgrpo_jax.run.nodes import FORM, Node
from atgrpo_jax.run.saved import SavedRun
from atgrpo_jax.viewing.contents import kept
from atgrpo_jax.viewing.text import episode_text

_RUN_DIR = flags.DEFINE_string("run_dir", None, "The folder of a run. E.g. --run_dir=runs/plan")
_NODE = flags.DEFINE_multi_string(
    "node", [], f"What to draw again: {FORM}. It may be given several times. E.g. --node=12/train/530"
)
_RANDOM = flags.DEFINE_integer("random", 0, "So many groups of the run, taken at random. E.g. --random=20", 0)
_SEED = flags.DEFINE_integer("seed", 0, "Which groups --random takes. E.g. --seed=1", 0)
_TEMPERATURE = flags.DEFINE_float(
    "temperature",
    None,
    "Another temperature for the groups of the node; 0 is greedy. E.g. --temperature=0",
    0.0,
)
_EXECUTE = flags.DEFINE_integer(
    "execute", None, "Number of the candidate to go on from, instead of the best. E.g. --execute=3", 0
)
_SAY = flags.DEFINE_string("say", None, 'A text of yours to go on from. E.g. --say="[R, R, D]"')
_TAUGHT = flags.DEFINE_list("taught", None, "Steps whose lessons are to be seen. E.g. --taught=12,70")
_MESH = mesh_flag()
_COMPILED = compiled_flag()


def main(argv: list[str]) -> None:
    refuse_arguments(argv)
    if _RUN_DIR.value is None:
        raise ConfigError("--run_dir is missing, e.g. --run_dir=runs/plan")
    change = Change(_TEMPERATURE.value, _EXECUTE.value, _SAY.value)
    given = [Node.parse(name) for name in _NODE.value]
    steps = sorted({_number(text) for text in _TAUGHT.value or ()})
    if _EXECUTE.value is not None and _SAY.value is not None:
        raise ConfigError("--execute and --say each name what is executed; give one of them")
    if change != SAME and not given:
        raise ConfigError("--temperature, --execute and --say need a --node")
    if not (given or _RANDOM.value or steps):
        raise ConfigError("say what to draw again: --node, --random, or --taught; see --help")
    keep_compiled(_COMPILED.value)
    saved = SavedRun(_RUN_DIR.value, _MESH.value and parse_mesh(_MESH.value))
    for node in given:  # before weights are read and programs compiled
        fitting(saved.folder, node, change)
    if steps:
        _teach(saved, steps)
    files = [(file.step, file.split) for file in kept(saved.folder)]
    nodes = [*given, *at_random(saved.folder, files, _RANDOM.value, _SEED.value)]
    if nodes:
        _draw(saved, sorted(nodes, key=lambda node: node.step - (node.split == "train")), change)


def _draw(saved: SavedRun, nodes: list[Node], change: Change) -> None:
    different: list[str] = []
    with Again(saved) as again:
        for node in nodes:
            replayed = again.play(node, change)
            found = findings(node, replayed.recorded, replayed.episode, saved.experiment.tokenizer)
            print("\n".join([str(node), *(f"  {finding.words}" for finding in found)]), flush=True)
            if change != SAME:
                record = recorded_replay(node, change, replayed, found, saved.experiment)
                path = saved.folder.replays / write_replay(saved.folder, record)
                print("\n" + episode_text(record, [g for g in record["groups"] if _not_before(node, g)]))
                print(f"\nwritten to {path}", flush=True)
            elif (words := first_that_differs(found)) is not None:
                different.append(f"{node}: {words}")
    if different:
        count = f"{len(different)} of {counted(len(nodes), 'node')} came otherwise than recorded"
        raise RunError(f"{count}; the first one is {different[0]}")
    if change == SAME and len(nodes) > 1:
        print(f"all {len(nodes)} nodes: same bytes")


def _not_before(node: Node, group: dict) -> bool:
    return (group["turn"], group["stage"]) >= (node.turn or 0, node.stage or 0)


def _teach(saved: SavedRun, steps: list[int]) -> None:
    teams = Teams(saved)
    for step in steps:
        write_taught(saved.folder, step, taught(saved, teams, step))
        print(f"{saved.folder.taught_by(step)}: what step {step} taught", flush=True)
    print(f"Next: {typed('atgrpo_jax.report')} --run_dir={_RUN_DIR.value}")


def _number(text: str) -> int:
    if not text.isdigit() or text == "0":
        raise ConfigError(f"--taught={text}: expected numbers of training steps, as in --taught=12,70")
    return int(text)


if __name__ == "__main__":
    run_main(main)
