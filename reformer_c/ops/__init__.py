"""Arrays in, arrays out: every operation of the Reformer, forward and backward.

Each `op` gives the plain result, ``op_forward`` gives ``(out, saved)``, and
``op_backward(dout, saved)`` the gradients in the order of the inputs. Arrays are float32 or
float64, all of a call alike. Results do not depend on the number of threads, bit for bit.
"""

from types import ModuleType as _Module

from .attention import *
from .bfloat16 import *
from .decoding import *
from .fixed_point import *
from .full import *
from .hashing import *
from .key_value_index import *
from .layers import *
from .local import *
from .loss import *
from .lsh import *
from .machine import *
from .mlp import *
from .quantized import *
from .rotary import *
from .tables import *
from .training import *

# each imported module is an attribute of its package
__all__ = sorted(
    name
    for module in [*globals().values()]
    if isinstance(module, _Module)
    for name in getattr(module, "__all__", ())
)
