"""docs/tour.md: each of its commands works in an empty directory, and prints what the page shows."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "tour.md"
STEPS, MORE_STEPS = 12, 13
SHORT = {
    "quick.gin": [
        f"experiment.Experiment.steps = {STEPS}",
        "rollout.RolloutConfig.instances = 8",
        "warm_start.WarmStartConfig.steps = 20",
        "evaluation.EvaluationConfig.instances = 10",
        "evaluation.EvaluationConfig.validation_instances = 5",
    ],
    "train --gin_file=my_game.gin": [
        "experiment.Experiment.steps = 1",
        "warm_start.WarmStartConfig.steps = 3",
    ],
}
REPLACED = {"steps = 100": f"steps = {MORE_STEPS}", "steps = 90": f"steps = {STEPS}"}
REPLACED |= {"--step=90": f"--step={STEPS}", "node=90/": f"node={STEPS}/", "=4": "=2"}


def commands():
    """Yields each command of the page, and the lines that it shows."""
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for text in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = text.splitlines()
            yield command, lines


def shortened(command):
    for text, params in SHORT.items():
        if text in command:
            command += "".join(f' --gin_param="{param}"' for param in params)
    for long, short in REPLACED.items():
        command = command.replace(long, short)
    return command


def pattern(line):
    """What a line matches in a shorter run: any number where it has one, any path, any spaces."""
    line = re.sub(r"/work(?=/)|python(?= -m)", "PATH", re.sub(r"\s*#.*", "", line))
    line = re.sub(r"(\d+ min )?\d+ s\b", "TIME", line)
    line = re.sub(r"[+-]?\d[\d,]*(\.\d+)?", "NUMBER", line)
    line = re.escape(re.sub(r"\s+", " ", line).strip()).replace(r"\ ", r"\s+")
    line = line.replace("PATH", r"\S*").replace("TIME", r"(\d+\ min\ )?\d+\ s")
    line = re.sub(r"(NUMBER\\s\+[a-z]+?)s?\b", r"\1s?", line)  # there may be one of them, or more
    return line.replace("NUMBER", r"[+-]?\d[\d,]*(\.\d+)?(e-\d+)?")


@pytest.mark.slow
@pytest.mark.long
def test_the_tour_can_be_typed(tmp_path):
    assert len(list(commands())) == 12
    for command, lines in commands():
        typed = shortened(command).replace("python -m", f"{shlex.quote(sys.executable)} -m")
        done = subprocess.run(
            ["bash", "-c", typed], cwd=tmp_path, env=os.environ | {"HOME": str(tmp_path)},
            capture_output=True, text=True,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{command}\n{said}"
        for line in lines:
            assert re.search(pattern(line), said), f"{command}\nprints no {line!r}, but\n{said}"
