"""What the checks of this folder have in common: cases in, one JSON object a line out."""

import json
import sys


def answer(check, path=None):
    """Prints `check(case)` for each case of the JSON list in `path` (the first argument of the script)."""
    with open(path or sys.argv[1], encoding="utf-8") as file:
        cases = json.load(file)
    for case in cases:
        print(json.dumps(check(case)), flush=True)


def brief(error):
    """Whatever a loader throws, as its refusal."""
    return f"{type(error).__name__}: {error}"[:500]
