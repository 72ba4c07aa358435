"""Generated inputs: a few of them in the tests, the same each time; others as long as one likes.

    python tests/fuzz.py --area=judges --minutes=60

A round is the area's tests with another seed and ``TIMES`` as many examples. The first round that fails is
printed, and its seed; the exit code is 1 then. An example that takes more than 10 s fails.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

from hypothesis import HealthCheck, settings

HERE = Path(__file__).resolve().parent
TIMES = 20
AREAS = {
    "parsers": (
        "test_games_fuzz.py::test_games_take_any_text",
        "test_games_fuzz.py::test_what_is_found_in_a_text_is_in_it",
        "test_games_fuzz.py::test_a_program_comes_back_as_it_was_written",
        "test_math_fuzz.py::test_boxed_gives_a_short_answer_or_none",
        "test_math_fuzz.py::test_a_last_box_is_found_behind_any_text",
        "test_config.py::test_what_is_rendered_loads_to_the_same",
    ),
    "judges": (
        "test_math_fuzz.py::test_plain_equality_has_no_sides",
        "test_math_fuzz.py::test_numbers_are_equal_whatever_they_are_written_in",
        "test_math_fuzz.py::test_the_judge_answers_whatever_it_is_asked",
        "test_code_outputs.py::test_every_pair_of_texts_has_a_verdict",
        "test_games_fuzz.py::test_spaces_between_signs_do_not_count_and_signs_do",
        "test_games_fuzz.py::test_the_solver_finds_what_trying_everything_finds",
        "test_games_fuzz.py::test_the_solvers_work_is_bounded",
    ),
    "folders": (
        "test_folders_fuzz.py",
        "test_tokens.py::test_ids_of_plain_texts_are_those_of_the_library",
    ),
    "rows": (
        "test_code_rows.py::test_a_row_with_anything_in_it_is_refused_by_its_field_or_can_be_played",
        "test_math_fuzz.py::test_rows_are_read_or_refused_by_field",
        "test_math_fuzz.py::test_answers_of_downloads_are_made_or_left_out",
        "test_games_fuzz.py::test_odd_rows_of_puzzles_are_named",
        "test_games_fuzz.py::test_any_bytes_are_rows_or_named",
        "test_games_fuzz.py::test_any_rows_are_a_level_or_refused",
        "test_games_fuzz.py::test_a_level_is_refused_only_if_it_has_no_solution",
    ),
    "answers": ("test_server_answers.py",),
    "wire": (
        "test_wire.py::test_episodes_come_back_as_they_were",
        "test_wire.py::test_a_message_that_is_not_whole_is_refused",
    ),
}


def fuzz(examples: int) -> settings:
    """How a test draws its examples: so many, or what ``main`` asks for."""
    times = int(os.environ.get("FUZZ_TIMES", "0"))
    return settings(
        max_examples=examples * max(times, 1),
        derandomize=not times,
        deadline=timedelta(seconds=10) if times else None,
        database=None,
        suppress_health_check=list(HealthCheck) if times else [HealthCheck.function_scoped_fixture],
    )


def places(value, most=40):
    """Every container in a value, with a key of it; of a long container the first ``most``."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(inner)[:most]:
        yield value, key
        yield from places(item, most)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--area", choices=AREAS, required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    given = parser.parse_args()
    began, examples, number = time.monotonic(), 0, given.seed
    while time.monotonic() - began < 60 * given.minutes:
        number += 1
        line = [
            sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider",
            "--hypothesis-show-statistics", f"--hypothesis-seed={number}",
            *(str(HERE / test) for test in AREAS[given.area]),
        ]  # fmt: skip
        done = subprocess.run(
            line, env=os.environ | {"FUZZ_TIMES": str(TIMES)}, capture_output=True, text=True
        )
        if done.returncode:
            print(done.stdout, done.stderr, f"failed with --seed={number - 1}", sep="\n")
            return 1
        examples += sum(map(int, re.findall(r"(\d+) passing, ", done.stdout)))
        minutes = (time.monotonic() - began) / 60
        print(f"{given.area} round {number}: {examples:,} examples, {minutes:.0f} min", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
