"""How long a call takes, and by how much it makes the process grow (Linux)."""

import time
from pathlib import Path

import reformer_c as rc

CLEAR = Path("/proc/self/clear_refs")


def growth(call, own=0, repeats=1, seconds=0.0):
    """The fastest of some calls in seconds, and the growth in the first, without `own` bytes.

    There are at least `repeats` calls, and more until `seconds` have passed: short calls are
    disturbed more by other work, and need more turns. "cpu_seconds" are those of all threads in the
    fastest call.
    """
    rc.fma_peak(0.01)  # starts the threads
    CLEAR.write_text("5")  # resets the peak
    before = resident("VmRSS")
    times, end = [], time.perf_counter() + seconds
    while len(times) < repeats or time.perf_counter() < end:
        begin, busy = time.perf_counter(), time.process_time()
        call()
        times.append((time.perf_counter() - begin, time.process_time() - busy))
        if len(times) == 1:
            size = resident("VmHWM") - before - own
    wall, busy = (round(x, 6) for x in min(times))
    return {"seconds": wall, "cpu_seconds": busy, "bytes": size}


def resident(key):
    """Memory of this process in bytes: VmRSS is the current size, VmHWM the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))
