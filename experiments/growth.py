"""Where experiments can measure the growth of a process."""

from benchmarks.growth import CLEAR

from .runner import Refused


def check_system():
    """Raise `Refused` where `benchmarks.growth` cannot measure."""
    if not CLEAR.exists():
        raise Refused("NAME: the peak of a process can only be measured on Linux")
