"""The attention operations and the feed-forward as PyTorch operators, with gradients.

Tensors on the CPU are used where they lie, and results are written where PyTorch will read them.
`patch` makes a Reformer of transformers or reformer_pytorch run on this core. As many threads work
as PyTorch uses (``torch.set_num_threads``).

Each is an operator of ``torch.ops.reformer_c``, so `torch.compile` takes it as it is; there it
also returns what its backward pass needs. Derivatives are those of one backward
pass: forward mode raises NotImplementedError; gradients of gradients, and the grad, vjp and jacrev
of ``torch.func``, raise RuntimeError. ``torch.func.vmap`` is a loop.

>>> import torch
>>> import reformer_c.torch
>>> qk, v = torch.randn(2, 1, 8, 1000, 64).requires_grad_()
>>> out = reformer_c.torch.lsh_attention(qk, v, num_hashes=2, is_causal=True)
>>> out.sum().backward()

Extra: ``torch`` (``pip install ".[torch]"`` from a checkout).
"""

from importlib.util import find_spec

from ..checks import requires_extra

if find_spec("torch") is None:
    raise requires_extra("reformer_c.torch", "torch", "torch")

from .attention import full_attention, local_attention, lsh_attention
from .layers import feed_forward
from .models import patch, unpatch

__all__ = [
    "feed_forward",
    "full_attention",
    "local_attention",
    "lsh_attention",
    "patch",
    "unpatch",
]
