"""Writes a page that shows a run: curves, steps, and episodes as trees. It needs no network.

    python -m atgrpo_jax.report --run_dir=runs/plan

The page is RUN_DIR/report.html, or --out. The run may still be going on. --watch writes the page
anew (RUN_DIR/watch.html) until the run has ended, and an open page follows it. --text prints one
node of a run instead: an episode, a turn, or what one role said there.

    python -m atgrpo_jax.report --run_dir=runs/plan --watch
    python -m atgrpo_jax.report --run_dir=runs/plan --text=12/train/530
"""

from absl import flags

from atgrpo_jax.common.cli import refuse_arguments, run_main
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.files import folder_path
from atgrpo_jax.common.progress import Progress, counted
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.nodes import FORM
from atgrpo_jax.viewing.contents import evaluations, kept, replays
from atgrpo_jax.viewing.page import Writer, watch
from atgrpo_jax.viewing.text import node

_RUN_DIR = flags.DEFINE_string("run_dir", None, "The folder of a run. E.g. --run_dir=runs/plan")
_OUT = flags.DEFINE_string(
    "out",
    None,
    "The page to write; if not given, report.html or, with --watch, watch.html in the run folder. E.g. "
    "--out=a.html",
)
_STEP = flags.DEFINE_list(
    "step", None, "Steps whose episodes are shown; those that tell most if not given. E.g. --step=0,100,300"
)
_TEXT = flags.DEFINE_string("text", None, f"Prints a node: {FORM}. E.g. --text=12/train/530")
_EPISODES = flags.DEFINE_integer(
    "episodes", 64, "Most episodes of a step that are shown, evenly chosen. E.g. --episodes=200", 1
)
_WATCH = flags.DEFINE_bool(
    "watch", False, "Write the page anew, every --every seconds, until the run has ended. E.g. --watch"
)
_EVERY = flags.DEFINE_float("every", 30.0, "Seconds between two pages of --watch. E.g. --every=10", 1.0)
_MB = flags.DEFINE_float("mb", 16.0, "About how large the page may become, in megabytes. E.g. --mb=50", 0.1)


def main(argv: list[str]) -> None:
    refuse_arguments(argv)
    if _RUN_DIR.value is None:
        raise ConfigError("--run_dir is missing, e.g. --run_dir=runs/plan")
    folder = RunFolder(_RUN_DIR.value)
    if not folder.exists():
        raise RunError(f"{folder.path} holds no run")
    if _TEXT.value is not None:
        print(node(folder, _TEXT.value))
        return
    steps = tuple(map(_number, _STEP.value or ()))
    files = [*kept(folder), *evaluations(folder)]
    unknown = sorted(set(steps) - {file.step for file in files})
    if unknown and not _WATCH.value:  # they may still come
        raise ConfigError(f"--step: there are no episodes of step {', '.join(map(str, unknown))}")
    # The run itself writes its report at its end: another file, so that no two write the same one.
    path = folder.path / "watch.html" if _WATCH.value else folder.report
    path = path if _OUT.value is None else folder_path(_OUT.value)
    if _WATCH.value:
        watch(Writer(folder, path, steps, _EPISODES.value, _MB.value), _EVERY.value)
        return
    with Progress("page", 100, "%") as progress:
        done = 0

        def advance(share: float) -> None:
            nonlocal done
            while done < int(100 * share):
                done += 1
                progress.advance()

        names = Writer(folder, path, steps, _EPISODES.value, _MB.value, advance).write()
    of = len(files) + len(replays(folder))
    print(f"{path}: episodes of {len(names)} of {counted(of, 'file')}. Open it in a browser.")


def _number(text: str) -> int:
    if not text.isdigit():
        raise ConfigError(f"--step={text}: expected numbers of steps, as in --step=0,100")
    return int(text)


if __name__ == "__main__":
    run_main(main)
