"""Try the properties of ``tests/test_properties.py`` on many random inputs, for a number of minutes.

    python -m benchmarks.fuzz --minutes 10

Each round is one pytest run with a random seed that repeats it (``--hypothesis-seed``). A line per property that fails
is printed; one JSON line about the whole run is appended to ``--log``. Exit status 1 when anything failed.
"""

import argparse
import collections
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRIED = re.compile(r"(\d+) passing, (\d+) failing, and (\d+) invalid test cases")
FAILED = re.compile(r"^(?:FAILED|ERROR) \S+?::(\S+)(?: - (.*))?$", re.M)
TEST = re.compile(r"^\S+?::(\w+)(?:\[.*\])?:$", re.M)


def fuzz_round(factor, seed, seconds):
    """One pytest run over all properties: ``(examples per property, what failed)``; stopped after ``seconds``."""
    command = [sys.executable, "-m", "pytest", "tests/test_properties.py", "-q", "-p", "no:cacheprovider", "--tb=short"]
    command += ["-W", "ignore", "--hypothesis-show-statistics", f"--hypothesis-seed={seed}"]
    environment = os.environ | {"FUZZ_FACTOR": str(factor), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)
    examples, names = collections.Counter(), TEST.split(done.stdout)[1:]
    for name, statistics in zip(names[::2], names[1::2], strict=True):
        examples[name] += sum(int(good) + int(bad) for good, bad, _ in TRIED.findall(statistics))
    failures = [f"{name}: {reason}" for name, reason in FAILED.findall(done.stdout)]
    if done.returncode > 1 or not examples:  # pytest itself did not run: that is no result
        sys.exit(done.stdout + done.stderr)
    if failures:
        print(done.stdout)
    return examples, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--factor", type=int, default=20, help="times the examples of a default test run, per round")
    parser.add_argument("--log", type=Path, default=ROOT / "benchmarks" / "fuzz.jsonl")
    arguments = parser.parse_args()
    started, examples, failures, seeds = time.time(), collections.Counter(), {}, []
    while time.time() - started < 60 * arguments.minutes:
        seeds.append(random.SystemRandom().randrange(2**32))
        tried, failed = fuzz_round(arguments.factor, seeds[-1], seconds=60 * arguments.minutes + 600)
        examples.update(tried)
        for failure in failed:
            print(f"seed {seeds[-1]}: {failure}", flush=True)
            failures.setdefault(failure, seeds[-1])
    record = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "minutes": round((time.time() - started) / 60, 1),
        "factor": arguments.factor,
        "seeds": seeds,
        "examples": dict(examples),
        "in_all": sum(examples.values()),
        "failures": failures,
    }
    with open(arguments.log, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    print(f"{record['in_all']} examples of {len(examples)} properties in {record['minutes']} minutes, ", end="")
    print(f"{len(failures)} failures: {arguments.log}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
