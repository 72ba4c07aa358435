"""The list of tests with generated inputs is whole."""

import re
from pathlib import Path

from fuzz import AREAS

HERE = Path(__file__).parent


def test_every_generated_test_is_in_one_area():
    listed = [test for tests in AREAS.values() for test in tests]
    wanted = []
    for path in sorted(HERE.glob("test_*.py")):
        text = path.read_text()
        generated = [f"{path.name}::{name}" for name in re.findall(r"@given\((?:.|\n)*?\ndef (\w+)", text)]
        wanted += [path.name] if path.name in listed and generated else generated
    assert sorted(listed) == sorted(wanted)
