"""The attention operations and the feed-forward as PyTorch operators, with gradients.

Tensors on the CPU are read in place, and results are written directly into PyTorch's memory; those
of half precision are computed in float32, also under autocast.
`patch` makes a Reformer of transformers or reformer_pytorch run on these kernels, and
`use_lsh_attention` makes other models of transformers hash their attention: importing this module
registers ``attn_implementation="reformer_c_lsh"``. The number of threads is PyTorch's
(``torch.set_num_threads``).

Each operation is an operator in ``torch.ops.reformer_c``, which `torch.compile` supports; the
operator also returns what its backward pass needs. Derivatives are first-order, in reverse mode:
forward mode raises NotImplementedError; gradients of gradients, and ``torch.func.grad``, ``vjp``
and ``jacrev``, raise RuntimeError. ``torch.func.vmap`` runs a loop.

>>> import torch
>>> import reformer_c.torch
>>> qk, v = torch.randn(2, 1, 8, 1000, 64).requires_grad_()
>>> out = reformer_c.torch.lsh_attention(qk, v, num_hashes=2, is_causal=True)
>>> out.sum().backward()

Extra: ``torch`` (``pip install "reformer_c[torch]"``, or from a checkout
``pip install -e ".[torch]"``).
"""

from importlib.util import find_spec

from ..checks import requires_extra

if find_spec("torch") is None:
    raise requires_extra("reformer_c.torch", "torch", "torch")

from .attention import full_attention, local_attention, lsh_attention
from .interface import attention_function, use_lsh_attention
from .layers import feed_forward
from .models import patch, unpatch
from .prompt_index import index_of

__all__ = [
    "attention_function",
    "feed_forward",
    "full_attention",
    "index_of",
    "local_attention",
    "lsh_attention",
    "patch",
    "unpatch",
    "use_lsh_attention",
]
