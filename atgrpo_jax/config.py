"""Prints the whole config of a run: every field, defaults included. It starts nothing.

python -m atgrpo_jax.config --gin_file=plan.gin [--gin_param=...]
python -m atgrpo_jax.config --gin_file=plan.gin --describe | less

What it prints is a gin file. With --describe there are comments above every field: what it means,
its type, its default, and the file and line that has set it.
"""

from absl import flags

from atgrpo_jax.common.cli import gin_flags, needed_gin_files, run_main

_GIN_FILE, _GIN_PARAM = gin_flags()
_DESCRIBE = flags.DEFINE_bool(
    "describe", False, "Also say what each field means, and what has set it. E.g. --describe"
)


def main(argv: list[str]) -> None:
    files = needed_gin_files(argv, _GIN_FILE)
    from atgrpo_jax.run import gin_config  # here, as it imports JAX, which takes seconds
    from atgrpo_jax.run.describing import description

    experiment, values = gin_config.read(files, _GIN_PARAM.value)
    print(description(experiment, values) if _DESCRIBE.value else gin_config.render(experiment), end="")


if __name__ == "__main__":
    run_main(main)
