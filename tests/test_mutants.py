"""The faults of tests/mutants fit the code, and the tests notice a few of them, others every day."""

import datetime
import importlib.util
import random
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("mutants") / "run.py"
# Those whose tests take a few seconds; of the others the run by hand tells.
QUICK = {
    "test_loss.py test_oracle.py", "test_advantages.py test_groups.py", "test_sampling.py", "test_team.py",
    "test_evaluation.py", "test_plan_path.py", "test_sudoku.py", "test_tokens.py", "test_config.py",
    "test_prepare_answers.py test_prepare_programs.py test_prepare_files.py", "test_prompts.py",
}  # fmt: skip


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("mutants_run", RUN)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_every_fault_still_fits_the_code(run):
    """What the code has become may have taken a fault's text away: then the fault needs mending."""
    found = run.faults()
    assert len(found) >= 170
    assert list(run.misfits(run.ROOT, found)) == []
    assert {fault.tests for fault in found} >= QUICK


@pytest.mark.slow
def test_the_tests_notice_todays_faults(run, tmp_path):
    """Three, by the date. A survivor is a gap in the tests: run.py says how to look for more."""
    among = [fault for fault in run.faults() if fault.tests in QUICK]
    today = random.Random(datetime.date.today().isoformat()).sample(among, 3)
    copy = run.Copy(tmp_path)
    try:
        ends = {fault.name: copy.attempt(fault, 600).end for fault in today}
    finally:
        copy.close()
    assert set(ends.values()) == {"killed"}, ends
