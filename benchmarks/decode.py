"""Decoding speed after a prompt: fixed chunks, whole buckets, and Hugging Face's Reformer.

All have the `book` model's size and the same random weights, in one process. The prompt is timed up
to the first new token; decoding is the median over several batches of tokens.
"""

import argparse
import time
import warnings

import numpy as np

import reformer_c as rc
from reformer_c.tools.bench import describe_machine, print_machine

from . import rivals

BATCHES = 5
FIELDS = {
    "attn_layers": ["local", "lsh"] * 3, "num_attention_heads": 2, "hidden_size": 256,
    "feed_forward_size": 512, "vocab_size": 320, "num_buckets": [64, 128], "is_decoder": True,
    "axial_pos_shape": [512, 1024], "max_position_embeddings": 524288, "hash_seed": 0,
}  # fmt: skip


def ours(model, ids, tokens):
    """Seconds for the prompt, and per token after it."""
    start = time.perf_counter()
    stream = model.stream(ids, max_new_tokens=BATCHES * tokens + 1, eos_token_id=None, rng=0)
    next(stream)
    prompt = time.perf_counter() - start
    return prompt, batches(lambda: next(stream), tokens)


def theirs(model, ids, tokens):
    import torch

    with torch.no_grad():
        start = time.perf_counter()
        state = model(torch.tensor(ids), use_cache=True)
        token = state.logits[:, -1:].argmax(-1)
        prompt = time.perf_counter() - start

        def step():
            nonlocal state, token
            state = model(token, past_buckets_states=state.past_buckets_states, use_cache=True)
            token = state.logits[:, -1:].argmax(-1)

        return prompt, batches(step, tokens)


def batches(step, tokens):
    """Median over batches of the seconds for one step."""
    found = []
    for _ in range(BATCHES):
        start = time.perf_counter()
        for _ in range(tokens):
            step()
        found.append((time.perf_counter() - start) / tokens)
    return float(np.median(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[4096, 65536], metavar="N")
    parser.add_argument("--tokens", type=int, default=100, help="tokens per batch")
    options = parser.parse_args()
    warnings.simplefilter("ignore")

    print_machine(describe_machine() | rivals.describe())
    with rivals.num_threads(rc.get_num_threads()):
        compare(options)


def compare(options):
    models = {
        f"reformer_c, scope={scope}": rc.ReformerModelWithLMHead(
            rc.ReformerConfig(**FIELDS, attention_scope=scope), rng=0
        )
        for scope in ("chunk", "bucket")
    }
    parameters = next(iter(models.values())).parameters
    hugging_face = None
    if rivals.HUGGING_FACE in rivals.installed():
        hugging_face = rivals.hugging_face_model(FIELDS, parameters).eval()
    print(f"{'':28} {'prompt':>8} {'prompt, tokens/s':>16} {'decode, tokens/s':>16} {'ratio':>7}")
    for length in options.prompts:
        ids = np.random.default_rng(0).integers(2, 320, (1, length))
        rows = {}
        if hugging_face is not None:
            rows[rivals.HUGGING_FACE] = theirs(hugging_face, ids, max(2, options.tokens // 10))
        rows |= {name: ours(model, ids, options.tokens) for name, model in models.items()}
        for name, (prompt, token) in rows.items():
            base = rows.get(rivals.HUGGING_FACE)
            ratio = f"{base[1] / token:6.1f}x" if base else ""
            print(f"{name:28} {length:8,} {length / prompt:16,.0f} {1 / token:16,.0f} {ratio:>7}")
    for name, model in models.items():
        sizes = ", ".join(f"{model.cache_bytes(n) / 2**20:.1f} MB" for n in options.prompts)
        print(f"cache of {name}: {sizes}")


if __name__ == "__main__":
    main()
