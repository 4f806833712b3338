"""Arrays in, arrays out: every operation of the Reformer, forward and backward.

Each `op` gives the plain result, ``op_forward`` gives ``(out, saved)``, and
``op_backward(dout, saved)`` the gradients in the order of the inputs. Arrays are float32 or
float64, all of a call alike. Results do not depend on the number of threads, bit for bit.
"""

from . import (
    attention,
    bfloat16,
    decoding,
    full,
    hashing,
    layers,
    local,
    loss,
    lsh,
    machine,
    quantized,
    rotary,
    tables,
    training,
)  # fmt: skip
from .attention import *
from .bfloat16 import *
from .decoding import *
from .full import *
from .hashing import *
from .layers import *
from .local import *
from .loss import *
from .lsh import *
from .machine import *
from .quantized import *
from .rotary import *
from .tables import *
from .training import *

__all__ = sorted(
    name
    for module in (
        attention, bfloat16, decoding, full, hashing, layers, local, loss, lsh, machine, quantized,
        rotary, tables, training,
    )
    for name in module.__all__
)  # fmt: skip
