"""The same work in other libraries.

Each function returns calls without arguments by name, only of libraries that are installed.
"""

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np

from reformer_c.tools.bench import CHUNK, DEPTH, HEADS

TORCH, HUGGING_FACE, LUCIDRAINS, NUMPY = "torch", "Hugging Face", "lucidrains", "NumPy"
FLEX = "torch FlexAttention, compiled"
SDPA, AUTOCAST = "torch SDPA", " autocast"
MODULES = {"torch": TORCH, "transformers": HUGGING_FACE, "reformer_pytorch": LUCIDRAINS}


def installed():
    """Names of the libraries that are installed."""
    return [NUMPY, *(name for module, name in MODULES.items() if find_spec(module))]


@contextmanager
def num_threads(n):
    """Make all of them use `n` threads (NumPy only if threadpoolctl is installed)."""
    with ExitStack() as stack:
        if find_spec("threadpoolctl"):
            import threadpoolctl

            stack.enter_context(threadpoolctl.threadpool_limits(n, user_api="blas"))
        if TORCH in installed():
            import torch

            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(n)
        yield


# ---- attention: q, k, v are arrays (1, HEADS, t, DEPTH) ----


def full_attention(q, k, v, backward=False, autocast=False):
    """Causal; with `backward`, the gradients of q, k and v too."""
    if TORCH not in installed():
        return {}
    import torch

    inputs = [torch.tensor(x, requires_grad=backward) for x in (q, k, v)]
    attention = torch.nn.functional.scaled_dot_product_attention
    call = partial(attention, *inputs, is_causal=True)
    return {SDPA + AUTOCAST * autocast: _pass(call, inputs, backward, autocast)}


def lsh_attention(qk, v, backward=False):
    """One round, causal; with `backward`, the gradients of qk and v too."""
    calls = {}
    if HUGGING_FACE in installed():
        calls[HUGGING_FACE] = _hugging_face("LSHSelfAttention", qk, backward)
    if LUCIDRAINS in installed():
        import torch
        from reformer_pytorch.reformer_pytorch import LSHAttention

        layer = LSHAttention(bucket_size=CHUNK, n_hashes=1, causal=True).eval()
        inputs = [torch.tensor(x[0], requires_grad=backward) for x in (qk, v)]
        calls[LUCIDRAINS] = _pass(lambda: layer(*inputs)[0], inputs, backward)
    return calls


def local_attention(q, k, v, backward=False):
    """Causal windows: a chunk and the one before it."""
    calls = {}
    if HUGGING_FACE in installed():
        calls[HUGGING_FACE] = _hugging_face("LocalSelfAttention", q, backward)
    return calls


def flex_attention(q, k, v):
    """torch's compiled attention with the same windows; compiling takes half a minute."""
    if TORCH not in installed():
        return {}
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def visible(b, h, i, j):
        return (j <= i) & (j // CHUNK >= i // CHUNK - 1)

    t = q.shape[2]
    q, k, v = map(torch.from_numpy, (q, k, v))
    attention = torch.compile(flex_attention)
    call = None
    try:
        mask = create_block_mask(visible, None, None, t, t, device="cpu")
        call = _inference(lambda: attention(q, k, v, block_mask=mask))
        call()
    except Exception as error:  # a missing compiler, an unknown processor, ...
        print(f"  {FLEX}: skipped, {type(error).__name__}: {str(error).splitlines()[0]}")
        return {}
    return {FLEX: call}


def _hugging_face(name, x, backward):
    """A layer's attention alone: its projections are replaced by the identity."""
    import torch
    import transformers
    from transformers.models.reformer import modeling_reformer

    transformers.logging.set_verbosity_error()
    t = x.shape[2]
    config = transformers.ReformerConfig(
        hidden_size=HEADS * DEPTH, num_attention_heads=HEADS, attention_head_size=DEPTH,
        is_decoder=True, max_position_embeddings=t, num_hashes=1,
        lsh_attn_chunk_length=CHUNK, local_attn_chunk_length=CHUNK,
        lsh_attention_probs_dropout_prob=0.0, local_attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    layer = getattr(modeling_reformer, name)(config).eval()
    for projection in ("query_key", "query", "key", "value"):
        if hasattr(layer, projection):
            setattr(layer, projection, torch.nn.Identity())
    states = torch.tensor(x.transpose(0, 2, 1, 3).reshape(1, t, -1), requires_grad=backward)
    return _pass(lambda: layer(states).hidden_states, [states], backward)


def _inference(call):
    import torch

    return torch.inference_mode()(call)


def _pass(forward, inputs, backward, autocast=False):
    """A call of `forward`; with `backward`, also of the gradients of `inputs`."""
    import torch

    if autocast:
        forward = torch.autocast("cpu", torch.bfloat16)(forward)
    if not backward:
        return _inference(forward)
    dout = torch.ones_like(forward())
    return lambda: torch.autograd.grad(forward(), inputs, dout)


# ---- matrix products ----


def feed_forward(x, w1, b1, w2, b2):
    """Two linear layers with relu between them."""
    calls = {NUMPY: lambda: np.maximum(x @ w1.T + b1, 0) @ w2.T + b2}
    return calls | linear_layers(x, w1, b1, w2, b2)


def linear_layers(x, *weights, backward=False, autocast=False):
    """With relu between them; with `backward`, the gradients of x and of all weights too."""
    if TORCH not in installed():
        return {}
    import torch

    modules = []
    for weight, bias in zip(weights[::2], weights[1::2], strict=True):
        layer = torch.nn.Linear(*weight.T.shape)
        layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
        modules += [layer, torch.nn.ReLU(inplace=True)]
    module = torch.nn.Sequential(*modules[:-1])
    states = torch.tensor(x, requires_grad=backward)
    inputs = [states, *module.parameters()]
    return {TORCH + AUTOCAST * autocast: _pass(lambda: module(states), inputs, backward, autocast)}


def library_products(n=2048):
    """Products of two n x n matrices, the measure of what a library reaches on this machine."""
    return product(*np.random.default_rng(0).standard_normal((2, n, n), np.float32))


def product(a, b):
    """a @ b."""
    calls = {NUMPY: lambda: a @ b}
    if TORCH in installed():
        import torch

        ta, tb = torch.from_numpy(a), torch.from_numpy(b)
        calls[TORCH] = _inference(lambda: ta @ tb)
    return calls


# ---- whole models ----


def training_step(config, parameters, ids, patched=False, autocast=False):
    """Loss, all gradients and Adafactor of transformers' model; `patched` by `reformer_c.torch`."""
    if HUGGING_FACE not in installed():
        return {}
    import torch
    from transformers.optimization import Adafactor

    from reformer_c.torch import patch

    fields = {name: value for name, value in config.to_dict().items() if value is not None}
    model = hugging_face_model(fields, parameters).train()
    if patched:
        patch(model)
    optimizer = Adafactor(model.parameters(), lr=1e-3, relative_step=False, scale_parameter=False)
    tokens = torch.tensor(ids)

    def step():
        model.zero_grad()
        # also around the backward pass, which recomputes layers
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(tokens, labels=tokens).loss.backward()
        optimizer.step()

    return {HUGGING_FACE + ", patched" * patched + AUTOCAST * autocast: step}


def hugging_face_model(fields, parameters):
    """transformers' language model of this configuration, with copies of our weights."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.ReformerModelWithLMHead(transformers.ReformerConfig(**fields))
    weights = {name: torch.tensor(array) for name, array in parameters.items()}
    model.load_state_dict(weights, strict=False)
    return model


# ---- versions ----


def describe():
    """Versions, and the processor type that each BLAS library has detected."""
    words = {}
    packages = ("torch", "transformers", "reformer-pytorch")
    words["rivals"] = ", ".join(
        f"{package} {version(package)}" if find_spec(package.replace("-", "_")) else f"no {package}"
        for package in packages
    )
    if find_spec("threadpoolctl"):
        import threadpoolctl

        for library in threadpoolctl.threadpool_info():
            if library["user_api"] == "blas":
                words["BLAS"] = (
                    f"{library['internal_api']} {library['version']} (of NumPy), kernels for "
                    f"{library.get('architecture', 'an unknown core')}, "
                    f"{library['threading_layer']}"
                )
    else:
        words["BLAS"] = "unknown: threadpoolctl is not installed"
    if TORCH in installed():
        import torch

        words["torch"] = f"{torch.backends.cpu.get_cpu_capability()}, {_mkl()}"
    return words


def _mkl():
    """MKL's description of itself, which it prints before its first product."""
    import torch

    if not torch.backends.mkl.is_available():
        return "without MKL"
    output = subprocess.run(
        [sys.executable, "-c", "import torch; torch.ones(8, 8) @ torch.ones(8, 8)"],
        env=os.environ | {"MKL_VERBOSE": "1"}, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    lines = [line for line in output.splitlines() if line.startswith("MKL_VERBOSE ")]
    return lines[0].removeprefix("MKL_VERBOSE ").split(", Lnx")[0] if lines else "MKL is silent"
