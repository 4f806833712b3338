"""A measurement in a process of its own, whose memory nothing else has touched."""

import json
import os
import subprocess
import sys


def measure_alone(module, *words):
    """What ``python -m module words`` prints, which is JSON."""
    command = [sys.executable, "-m", module, *map(str, words)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(child.stdout)
