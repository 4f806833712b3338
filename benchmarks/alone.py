"""Measurements in a new process, so that earlier ones do not affect its memory."""

import argparse
import json
import os
import subprocess
import sys


def measure_alone(module, *words):
    """Run ``python -m module words`` and parse the JSON that it prints."""
    command = [sys.executable, "-m", module, *map(str, words)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(child.stdout)


def print_measured(measure):
    """What a module that `measure_alone` runs does: print ``measure(settings)``, both as JSON."""
    parser = argparse.ArgumentParser(description=measure.__doc__)
    parser.add_argument("settings", type=json.loads, help="as JSON")
    print(json.dumps(measure(parser.parse_args().settings)))
