"""Trains a team, or goes on with a run that stopped.

python -m atgrpo_jax.train --gin_file=plan.gin [--gin_param=...] [--run_dir=...]
python -m atgrpo_jax.train plan.gin
python -m atgrpo_jax.train --gin_file=paper/math.gin --gin_file=paper/lora.gin --gin_file=paper/qwen3_8b.gin

Later files win, and --gin_param after them: --gin_param="experiment.Experiment.steps = 20".
Without files, the config of the run in --run_dir counts, or else that of the run that --from names.

A new run that starts from the weights of others, and another rate in the middle of a run:

python -m atgrpo_jax.train --from=runs/plan --from_step=best --run_dir=runs/fork [--gin_param=...]
python -m atgrpo_jax.train --run_dir=runs/plan --change --gin_param=...
"""

from absl import flags

from atgrpo_jax.common.cli import (
    compiled_flag,
    gin_files,
    gin_flags,
    host_flags,
    look_for_no_missing_tpu,
    run_main,
)
from atgrpo_jax.common.errors import ConfigError

_GIN_FILE, _GIN_PARAM = gin_flags()
_RUN_DIR = flags.DEFINE_string(
    "run_dir",
    None,
    "The run folder. A run that is there goes on. If it is not given, it is runs/ and the names of the gin "
    "files. It may be in a bucket. E.g. --run_dir=runs/small or --run_dir=gs://bucket/runs/small",
)

_FROM = flags.DEFINE_string(
    "from",
    None,
    "Begin a new run whose policies start from those of another run, with fresh optimizers and without a "
    "warm start. Policies and roles may have runs of their own. E.g. --from=runs/plan or "
    "--from=mover=runs/a,scout=runs/b",
)
_FROM_STEP = flags.DEFINE_string(
    "from_step",
    None,
    "The checkpoint to start from: a number, or best, by validation; the newest if it is not given. E.g. "
    "--from_step=70 or --from_step=mover=70,scout=best",
)
_CHANGE = flags.DEFINE_bool(
    "change",
    False,
    "Let settings of a run change from its next step on: optimizer, loss, rollout, credit, batch and "
    "evaluation. The run folder records it. E.g. --change",
)

_HOSTS, _HOST, _COORDINATOR = host_flags()
_HEARTBEAT = flags.DEFINE_float(
    "heartbeat",
    30.0,
    "Seconds. All hosts end if one of them was not heard of for so long. E.g. --heartbeat=60",
    1.0,
)
_PATIENCE = flags.DEFINE_float(
    "patience",
    3600.0,
    "Seconds. All hosts end if one of them lets the others wait for so long. E.g. --patience=600",
    1.0,
)

_OTHER_HOSTS = flags.DEFINE_bool(
    "other_hosts",
    False,
    "Let a run go on with another number of hosts, another mesh or another engine. From then on it rounds in "
    "another way, and the run folder records it. E.g. --other_hosts",
)

_CHANGED_CODE = flags.DEFINE_bool(
    "changed_code",
    False,
    "Let a run go on although a module of yours has changed since it began. The run folder keeps both. "
    "E.g. --changed_code",
)
_GATHER = flags.DEFINE_enum(
    "gather",
    "devices",
    ("devices", "cpu"),
    "What long messages between hosts travel through: their devices, or their CPUs, which leaves "
    "accelerators alone. E.g. --gather=cpu",
)

_LOCKSTEP = flags.DEFINE_bool(
    "lockstep",
    False,
    "Let every host issue the same number of programs on its devices between two that all hosts run "
    "together: for machines on which the probe asks for it. E.g. --lockstep",
)
_COMPILED = compiled_flag()


def main(argv: list[str]) -> None:
    given = gin_files(argv, _GIN_FILE)
    # Imported here because JAX takes seconds: Ctrl-C and SIGTERM are handled by now.
    from atgrpo_jax.hosts.joining import joined, place_of
    from atgrpo_jax.hosts.start import check_same_start
    from atgrpo_jax.run import gin_config
    from atgrpo_jax.run.compiled import keep_compiled
    from atgrpo_jax.run.folder import RunFolder
    from atgrpo_jax.run.loop import train
    from atgrpo_jax.run.report import summary_text
    from atgrpo_jax.run.run_dirs import config_of, default_run_dir
    from atgrpo_jax.run.saved import claim
    from atgrpo_jax.run.starts import Asked
    from atgrpo_jax.viewing.page import write_page

    look_for_no_missing_tpu()
    if _FROM_STEP.value is not None and _FROM.value is None:
        raise ConfigError("--from_step needs --from, e.g. --from=runs/plan --from_step=best")
    asked = None if _FROM.value is None else Asked.parse(_FROM.value, _FROM_STEP.value)
    run_dir = _RUN_DIR.value or default_run_dir(given)
    folder = RunFolder(run_dir)
    files = given or [config_of(folder, asked)]
    experiment = gin_config.load(files, _GIN_PARAM.value)
    place = place_of(_HOSTS.value, _HOST.value, _COORDINATOR.value)
    if _LOCKSTEP.value and not experiment.gate:  # which lets every host arrange all weights
        raise ConfigError("--lockstep needs Experiment.gate = True")
    cpu = _GATHER.value == "cpu"
    with joined(place, _HEARTBEAT.value, _PATIENCE.value, cpu, _LOCKSTEP.value) as hosts:
        keep_compiled(_COMPILED.value, hosts.index == 0)
        check_same_start(hosts, gin_config.render(experiment))
        claimed = claim(
            folder, experiment, hosts, _OTHER_HOSTS.value, _CHANGE.value, asked, _CHANGED_CODE.value
        )
        with claimed as begun:
            summary = train(begun, folder, hosts)
    if hosts.index == 0:
        write_page(folder, folder.report)
        print(summary_text(summary))


if __name__ == "__main__":
    run_main(main)
