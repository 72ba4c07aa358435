"""Do the alarms of docs/influence.md ring where they should, and nowhere else?

Trains honest teams, and teams with an idler or a saboteur, measures what the words of each role change, and
prints a row for each run and role.

    python benchmarks/alarms.py --folder=runs/alarms [--teams=honest,liar] [--seeds=10] [--at_once=2]

A run takes one to two minutes of a CPU core. The same command goes on with what is missing.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from atgrpo_jax.rollout.contributions import IN_PLACE, alarms

HERE = Path(__file__).resolve().parent / "alarms"
SHORT = [f"--gin_file={HERE / 'short.gin'}"]
THIRD = [*SHORT, f"--gin_file={HERE / 'third.gin'}"]
LIAR = [*THIRD, "--gin_param=third_role.ThirdRole.part = 'liar'"]
TEAMS = {
    "honest": SHORT,
    "unheard": [*THIRD, "--gin_param=third_role.ThirdRole.part = 'unheard'"],
    "blind": [*THIRD, "--gin_param=third_role.ThirdRole.part = 'blind'"],
    "liar": LIAR,
    # A liar that stays as it is after its warm start: it names cells at random.
    "corrupt": [*LIAR, "--gin_param=team.Team.frozen = ('third',)"],
    # A fork of "unheard": the others stay as they are, and the third role turns to harm them.
    "turned": [
        *LIAR,
        "--gin_param=team.Team.frozen = ('honest',)",
        "--gin_param=experiment.Experiment.steps = 40",
    ],
}
FROM = {"turned": "unheard"}
HEAD = "team", "seed", "success", "role", *(f"lost, {instead}" for instead in IN_PLACE), "alarm"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--teams", default=",".join(TEAMS))
    parser.add_argument("--seeds", type=int, default=3, help="runs of each team")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--before", action="store_true", help="measure before the first step, not at the end")
    parser.add_argument("--at_once", type=int, default=1, help="seeds at once")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    seeds = range(args.first, args.first + args.seeds)
    teams = args.teams.split(",")

    def of_run(team: str, seed: int) -> dict[str, float]:
        return measured(trained(args.folder, team, seed), args.instances, args.before)

    with ThreadPoolExecutor(args.at_once) as pool:
        found = list(pool.map(lambda seed: {team: of_run(team, seed) for team in teams}, seeds))
    rows = [HEAD]
    for team in teams:
        for seed, records in zip(seeds, found, strict=True):
            rows += lines(team, seed, records[team])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def measured(run: Path, instances: int, before: bool) -> dict[str, float]:
    """Returns what ``influence`` finds of a run at its end, or before its first step."""
    found = run / "influence.jsonl"

    def fitting() -> list[dict[str, float]]:
        records = map(json.loads, found.read_text().splitlines() if found.exists() else ())
        return [r for r in records if r["instances"] == instances and (r["step"] == 0) == before]

    if not fitting():
        wanted = [f"--instances={instances}", *(["--step=0"] if before else [])]
        call(f"{run}.influence.txt", "influence", f"--run_dir={run}", *wanted)
    return fitting()[-1]


def trained(folder: Path, team: str, seed: int) -> Path:
    """Returns the folder of a run, which is finished."""
    run = folder / f"{team}_{seed}"
    if not (run / "summary.json").exists():
        given = [f"--gin_param=experiment.Experiment.seed = {seed}", f"--run_dir={run}"]
        if team in FROM:
            given.append(f"--from={trained(folder, FROM[team], seed)}")
        call(f"{run}.train.txt", "train", *TEAMS[team], *given)
    return run


def call(log: str, command: str, *words: str) -> None:
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    with open(log, "w") as out:
        line = [sys.executable, "-m", f"atgrpo_jax.{command}", *words]
        subprocess.run(line, env=os.environ | {"PYTHONPATH": path}, stdout=out, stderr=out, check=True)


def lines(team: str, seed: int, record: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Returns a row for each role."""
    roles = [name.split("/")[1] for name in record if name.endswith("/sure")]
    rung = alarms(record, roles)
    return [
        (
            team,
            str(seed),
            f"{record['success']:.1%}",
            role,
            *(lost(record, f"role/{role}/lost_{instead}") for instead in IN_PLACE),
            " ".join(alarm.partition("/")[0] for alarm in rung if alarm.partition("/")[2] == role) or "-",
        )
        for role in roles
    ]


def lost(record: Mapping[str, float], name: str) -> str:
    if name not in record:
        return "-"
    return f"{record[name]:+.1%} ({record[f'{name}_low']:+.1%} to {record[f'{name}_high']:+.1%})"


if __name__ == "__main__":
    main()
