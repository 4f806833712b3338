"""How long a call takes, and by how much it makes the process grow (Linux)."""

import time
from pathlib import Path

import reformer_c as rc

CLEAR = Path("/proc/self/clear_refs")


def growth(call, own=0, repeats=1):
    """The fastest of some calls in seconds, and the growth in the first, without `own` bytes."""
    rc.fma_peak(0.01)  # starts the threads
    CLEAR.write_text("5")  # resets the peak
    before = resident("VmRSS")
    seconds = []
    for i in range(repeats):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
        if i == 0:
            size = resident("VmHWM") - before - own
    return {"seconds": round(min(seconds), 6), "bytes": size}


def resident(key):
    """Memory of this process in bytes: VmRSS is the current size, VmHWM the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))
