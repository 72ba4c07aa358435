"""Puts single faults into copies of the package, one at a time, and sees whether the tests notice.

    python tests/mutants/run.py --check                       which faults no longer fit the code; seconds
    python tests/mutants/run.py                               all of them: hours
    python tests/mutants/run.py --area=core --sample=20 --seed=1 --jobs=2
    python tests/mutants/run.py --resume                      goes on where another run was stopped

The faults are in the files beside this one, an area each: {(file, tests): [(old, new, what is wrong then)]}.
``old`` is in the file exactly once. A fault is noticed if one of the tests named for it fails, or takes much
longer than without it. Results are appended to --results as JSON lines; the last words are the score.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib.util
import json
import os
import queue
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
AREAS = ("core", "wiring", "engine", "tasks", "sandbox", "data", "launch")
COPIED = ("atgrpo_jax", "tests", "gin", "launch", "benchmarks", "docs", "pyproject.toml", "setup.py",
          "README.md", "BUILD.md")  # fmt: skip
LEAST_S = 120.0  # that tests may take, however short they are without a fault
TIMES = 5.0  # as long as without one


@dataclasses.dataclass(frozen=True)
class Fault:
    area: str
    file: str  # below the package
    tests: str  # below tests/; what pytest is given
    old: str
    new: str
    why: str

    @property
    def name(self) -> str:
        return f"{self.file}: {self.why}"


@dataclasses.dataclass(frozen=True)
class Result:
    name: str
    end: str  # "killed", "timeout", "survived"
    by: str  # the test that failed
    seconds: float


def faults(areas: Sequence[str] = AREAS) -> list[Fault]:
    found = []
    for area in areas:
        spec = importlib.util.spec_from_file_location(f"mutants_{area}", HERE / f"{area}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for (file, tests), entries in module.FAULTS.items():
            found += [Fault(area, file, tests, *entry) for entry in entries]
    return found


def misfits(root: Path, among: Sequence[Fault]) -> Iterator[str]:
    """What keeps faults from being put in, a line each: text that is not there exactly once, no change, no
    Python, a name that comes twice, or tests that there are not."""
    names: set[str] = set()
    for fault in among:
        path = root / "atgrpo_jax" / fault.file
        count = path.read_text(encoding="utf-8").count(fault.old) if path.is_file() else 0
        if count != 1:
            yield f"{fault.name}: {fault.old!r} is there {count} times"
        elif fault.old == fault.new:
            yield f"{fault.name}: changes nothing"
        elif fault.file.endswith(".py") and (error := _no_python(mutated(root, fault))):
            yield f"{fault.name}: {error}"
        if fault.name in names:
            yield f"{fault.name}: there are two of that name"
        names.add(fault.name)
        for test in fault.tests.split():
            file, _, function = test.partition("::")
            text = (
                (root / "tests" / file).read_text(encoding="utf-8")
                if (root / "tests" / file).is_file()
                else ""
            )
            if not text or (function and f"def {function}(" not in text):
                yield f"{fault.name}: there is no test {test}"


def mutated(root: Path, fault: Fault) -> str:
    return (root / "atgrpo_jax" / fault.file).read_text(encoding="utf-8").replace(fault.old, fault.new)


def _no_python(text: str) -> str:
    try:
        compile(text, "mutant", "exec")
    except SyntaxError as error:
        return f"is no Python then: {error}"
    return ""


class Copy:
    """A copy of the checkout, in which one fault at a time is tried. To be closed."""

    def __init__(self, cache: Path):
        self.root = Path(tempfile.mkdtemp(prefix="atgrpo_jax_mutant_"))
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, self.root / name, ignore=ignore)
            elif source.is_file():
                shutil.copyfile(source, self.root / name)
        self._environment = os.environ | {
            "PYTHONPATH": str(self.root),  # before whatever is installed
            "PYTHONDONTWRITEBYTECODE": "1",
            "JAX_COMPILATION_CACHE_DIR": str(cache),  # by what is compiled, so faults have their own
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }
        line = [sys.executable, "-c", "import atgrpo_jax; print(atgrpo_jax.__file__)"]
        found = subprocess.run(line, cwd=self.root, env=self._environment, capture_output=True, text=True)
        assert found.stdout.strip().startswith(str(self.root)), found.stdout + found.stderr

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def run(self, tests: str, limit: float) -> tuple[str, str, float]:
        """How it ended ("passed", "failed", "timeout", "broken"), the first test that failed, and seconds."""
        began = time.monotonic()
        words = [f"tests/{word}" for word in shlex.split(tests)]
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *words], cwd=self.root, env=self._environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return "timeout", "", time.monotonic() - began
        seconds = time.monotonic() - began
        if process.returncode == 0:
            return "passed", "", seconds
        found = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        if found is None and process.returncode > 0:
            return "broken", output[-2000:], seconds
        return "failed", found[1] if found else f"ended by signal {-process.returncode}", seconds

    def attempt(self, fault: Fault, limit: float) -> Result:
        path = self.root / "atgrpo_jax" / fault.file
        whole = path.read_text(encoding="utf-8")
        path.write_text(mutated(self.root, fault), encoding="utf-8")
        try:
            end, by, seconds = self.run(fault.tests, limit)
        finally:
            path.write_text(whole, encoding="utf-8")
        if end == "broken":
            raise SystemExit(f"{fault.name}: the tests do not run\n{by}")
        said = {"failed": "killed", "passed": "survived"}.get(end, end)
        return Result(fault.name, said, by, round(seconds, 1))


def main() -> int:
    given = _arguments()
    among = faults([given.area] if given.area else AREAS)
    wrong = list(misfits(Path(given.root), among))
    if given.check or wrong:
        print(*wrong, sep="\n") if wrong else print(f"all {len(among)} faults fit")
        return int(bool(wrong))
    if given.sample:
        among = random.Random(given.seed).sample(among, min(given.sample, len(among)))
    results = Path(given.results)
    if not given.resume:
        results.write_text("")
    known = {r.name: r for r in _read(results)}
    left = [fault for fault in among if fault.name not in known]
    cache = (
        Path(tempfile.mkdtemp(prefix="atgrpo_jax_mutants_compiled_"))
        if not given.cache
        else Path(given.cache)
    )
    copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    made = [Copy(cache) for _ in range(given.jobs)]
    for copy in made:
        copies.put(copy)
    try:
        wanted = sorted({fault.tests for fault in left})
        limits = dict.fromkeys(wanted, given.limit) if given.limit else _limits(made[0], wanted)
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool, results.open("a") as file:

            def one(fault: Fault) -> Result:
                copy = copies.get()
                try:
                    return copy.attempt(fault, limits[fault.tests])
                finally:
                    copies.put(copy)

            for number, future in enumerate(
                concurrent.futures.as_completed([pool.submit(one, fault) for fault in left]), 1
            ):
                result = future.result()
                known[result.name] = result
                file.write(json.dumps(dataclasses.asdict(result)) + "\n")
                file.flush()
                eta = (time.monotonic() - began) / number * (len(left) - number) / 60
                print(f"{number}/{len(left)} {result.end:8} {result.seconds:5.0f} s  {result.name}  "
                      f"[{result.by}]  {eta:.0f} min left", flush=True)  # fmt: skip
    finally:
        for copy in made:
            copy.close()
        if not given.cache:
            shutil.rmtree(cache, ignore_errors=True)
    return _score([known[fault.name] for fault in among])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--area", choices=AREAS)
    parser.add_argument("--sample", type=int, help="so many of them")
    parser.add_argument("--seed", default="0", help="which ones")
    parser.add_argument("--jobs", type=int, default=1, help="side by side; each takes a core and up to 4 GB")
    parser.add_argument("--limit", type=float, default=0.0,
                        help="seconds for the tests of a fault, for who knows that all pass without one; "
                        "without it that is tried first, which gives the limits")  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="without those that --results has")
    parser.add_argument("--results", default="mutants.jsonl")
    parser.add_argument("--cache", help="a folder for compiled code, to be kept")
    parser.add_argument("--check", action="store_true", help="only whether all can be put in")
    parser.add_argument("--root", default=str(ROOT), help="the checkout that --check looks at")
    return parser.parse_args()


def _read(results: Path) -> Iterator[Result]:
    if results.is_file():
        for line in results.read_text().splitlines():
            yield Result(**json.loads(line))


def _limits(copy: Copy, wanted: Sequence[str]) -> dict[str, float]:
    """Seconds for each selection of tests, all of which must pass without a fault."""
    limits = {}
    for number, tests in enumerate(wanted, 1):
        end, by, seconds = copy.run(tests, 3600)
        if end != "passed":
            raise SystemExit(f"without a fault {tests} {end}: {by}")
        limits[tests] = max(LEAST_S, TIMES * seconds)
        print(f"without a fault {number}/{len(wanted)}: {seconds:.0f} s  {tests}", flush=True)
    return limits


def _score(results: Sequence[Result]) -> int:
    survivors = [result for result in results if result.end == "survived"]
    killed = len(results) - len(survivors)
    print(f"{killed} of {len(results)} faults were noticed ({killed / max(len(results), 1):.1%})")
    for result in survivors:
        print(f"  survived  {result.name}")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
