"""Valid arguments of every operation: one table, small for checks and large for work in parallel.

`ARRAYS` gives an operation's arrays from sizes; `small` and `large` are the two sets of sizes.
`CALLS` are the combinations of options that all promises of operations are tested with.
"""

import numpy as np
from attention_cases import buckets_of, normal


def ones(*shape, dtype="float32"):
    return np.ones(shape, dtype)


# op: its arrays, from functions real(*shape) and ids(below, *shape), and from sizes
ARRAYS = {
    "linear": lambda real, ids, b=2, t=5, ci=4, co=3: dict(
        x=real(b, t, ci), weight=real(co, ci), bias=real(co)
    ),
    "layer_norm": lambda real, ids, b=2, t=5, c=4: dict(
        x=real(b, t, c), weight=real(c), bias=real(c)
    ),
    "embedding": lambda real, ids, b=2, t=3, v=3, c=4: dict(ids=ids(v, b, t), weight=real(v, c)),
    "axial_positions": lambda real, ids, b=2, t=3, n1=2, n2=2, c1=3, c2=5: dict(
        position_ids=ids(n1 * n2, b, t), w0=real(n1, c1), w1=real(n2, c2)
    ),
    "rotary_positions": lambda real, ids, b=2, t=3, h=2, d=5: dict(
        x=real(b, t, h, d), position_ids=ids(9, b, t)
    ),
    "dropout": lambda real, ids, n=2, c=5: dict(x=real(n, c)),
    "feed_forward": lambda real, ids, b=2, t=5, c=4, f=6, gated=False: dict(
        x=real(b, t, c),
        w1=real(f, c),
        b1=real(f),
        w2=real(c, f),
        b2=real(c),
        **(dict(w3=real(f, c), b3=real(f)) if gated else {}),
    ),
    "cross_entropy_head": lambda real, ids, b=2, t=3, c=4, v=5: dict(
        h=real(b, t, c), weight=real(v, c), bias=real(v), labels=ids(v, b, t)
    ),
    "full_attention": lambda real, ids, b=2, h=3, hk=None, t=8, d=4: dict(
        q=real(b, h, t, d), k=real(b, hk or h, t, d), v=real(b, hk or h, t, d)
    ),
    "lsh_attention": lambda real, ids, b=2, h=3, hk=None, t=8, d=4: dict(
        qk=real(b, h, t, d), v=real(b, hk or h, t, d)
    ),
    "lsh_hash": lambda real, ids, b=2, h=3, t=8, d=4, r=2, k=4: dict(
        x=real(b, h, t, d), rotations=real(h, d, r, k // 2)
    ),
    "adamw_step": lambda real, ids, n=4: dict(w=real(n), m=real(n), s=real(n), g=real(n)),
    "adafactor_step": lambda real, ids, n=3, c=4: dict(
        w=real(n, c), g=real(n, c), row=real(n), column=real(c), m=real(n, c)
    ),
    "sum_of_squares": lambda real, ids, n=4: dict(x=real(n)),
    "add_scaled": lambda real, ids, n=4: dict(y=real(n), x=real(n)),
    "add_rounded": lambda real, ids, n=4: dict(y=np.zeros(n, np.int16), x=real(n)),
    "from_fixed_point": lambda real, ids, n=4, c=3: dict(x=real(n, c).astype(np.int16)),
    "to_fixed_point": lambda real, ids, n=4, c=3: dict(x=real(n, c)),
    "to_bfloat16": lambda real, ids, n=4, c=3: dict(x=real(n, c)),
    "from_bfloat16": lambda real, ids, n=4, c=3: dict(x=real(n, c).astype(np.uint16)),
}
ARRAYS["local_attention"] = ARRAYS["full_attention"]
ARRAYS["quantized_linear"] = ARRAYS["linear"]
ARRAYS["quantized_feed_forward"] = ARRAYS["feed_forward"]

# op: the other arguments that it requires, or that make it deterministic
SCALARS = {
    "dropout": dict(p=0.5, key=1),
    "local_attention": dict(chunk_length=3),
    "lsh_attention": dict(chunk_length=3, rng=0),
    "lsh_hash": dict(num_hashes=2, num_buckets=4),
    "adamw_step": dict(lr=0.1, beta1=0.9, beta2=0.9, eps=1e-8, weight_decay=0.1, step=1),
    "adafactor_step": dict(
        lr=0.1, beta1=0.5, beta2=0.9, eps=1e-30, clip_threshold=1.0, weight_decay=0.1
    ),
    "add_scaled": dict(alpha=1.0),
    "add_rounded": dict(alpha=1.0),
}

# op: sizes that are large enough for several threads to share the work
LARGE = {
    "linear": dict(t=150, ci=48, co=70),
    "layer_norm": dict(t=3000, c=48),
    "embedding": dict(t=5000, v=50, c=33),
    "axial_positions": dict(t=5000, n1=6, n2=10, c1=20, c2=13),
    "rotary_positions": dict(t=700, h=3, d=70),
    "dropout": dict(n=300, c=1000),
    "feed_forward": dict(t=150, c=48, f=70),
    "cross_entropy_head": dict(t=150, c=48, v=90),
    "full_attention": dict(h=2, t=160, d=24),
    "local_attention": dict(h=2, t=160, d=24),
    "lsh_attention": dict(h=2, t=160, d=24),
}

IDS = np.array([[0, 1, 2], [2, 1, 0]])


def small(op):
    """The op's keyword arguments, in float32: ones, and `IDS` as integers."""
    return ARRAYS[op](ones, lambda below, b, t: IDS.copy()) | SCALARS.get(op, {})


def large(op, rng, dtype, **sizes):
    """The op's arrays in the order of its parameters, at the sizes of `LARGE` or these."""
    arrays = ARRAYS[op](
        lambda *shape: normal(rng, dtype, *shape),
        lambda below, *shape: rng.integers(0, below, shape),
        **LARGE[op] | sizes,
    )
    return [*arrays.values()]


RIGHT = {op: small(op) for op in ARRAYS}

MASK = np.array([[1] * 150 + [0] * 10, [0] * 3 + [1] * 157])
BUCKETS = buckets_of("random", (2, 2, 2, 160), 6, MASK, np.random.default_rng(0))
LSH = {"num_hashes": 2, "num_buckets": 6, "buckets": BUCKETS, "attention_mask": MASK}
DROP = {"dropout": 0.2, "dropout_key": 3}

# name: (op, options), for the arrays that `large` draws
CALLS = {
    "linear": ("linear", {}),
    "linear, medium": ("linear", {"matmul_precision": "medium"}),
    "layer_norm": ("layer_norm", {}),
    "embedding": ("embedding", {}),
    "axial_positions": ("axial_positions", {}),
    "rotary_positions": ("rotary_positions", {"theta": 100.0}),
    "dropout": ("dropout", {"p": 0.2, "key": 3}),
    "feed_forward": ("feed_forward", {}),
    "feed_forward, chunks, dropout": (
        "feed_forward",
        dict(activation="gelu", chunk_length=37, **DROP),
    ),
    "feed_forward, gated": ("feed_forward", dict(activation="silu", chunk_length=37, **DROP)),
    "feed_forward, medium": ("feed_forward", {"matmul_precision": "medium"}),
    "cross_entropy_head, high": ("cross_entropy_head", {"matmul_precision": "high"}),
    "cross_entropy_head": ("cross_entropy_head", {}),
    "cross_entropy_head, chunks": ("cross_entropy_head", {"chunk_length": 37}),
    "cross_entropy_head, smoothing": ("cross_entropy_head", {"label_smoothing": 0.1}),
    "full": ("full_attention", {}),
    "full, causal": ("full_attention", dict(is_causal=True, attention_mask=MASK, **DROP)),
    "local": ("local_attention", {"chunk_length": 32, "is_causal": True}),
    "local, all around": (
        "local_attention",
        dict(chunk_length=16, num_chunks_after=2, wrap=True, attention_mask=MASK, **DROP),
    ),
    "full, one head of keys": ("full_attention", {"is_causal": True}),
    "local, one head of keys": ("local_attention", {"chunk_length": 32, **DROP}),
    "lsh, one head of values": ("lsh_attention", dict(chunk_length=32, **LSH)),
    "local, medium": (
        "local_attention",
        dict(chunk_length=32, matmul_precision="medium", attention_mask=MASK, **DROP),
    ),
    "lsh, high": (
        "lsh_attention",
        dict(chunk_length=32, matmul_precision="high", is_causal=True, **LSH),
    ),
    "lsh": ("lsh_attention", dict(chunk_length=32, **LSH)),
    "lsh, hashed": ("lsh_attention", {"chunk_length": 32, "num_hashes": 2, "rng": 4}),
    "lsh, every switch": (
        "lsh_attention",
        dict(
            chunk_length=16,
            is_causal=True,
            attend_across_buckets=False,
            allow_duplicate_attention=False,
            wrap=False,
            num_chunks_after=1,
            **LSH,
            **DROP,
        ),
    ),
    "lsh, duplicates": (
        "lsh_attention",
        dict(chunk_length=16, num_chunks_before=3, allow_duplicate_attention=False, **LSH),
    ),
    "buckets": ("lsh_attention", dict(scope="bucket", **LSH)),
    "lsh, window": ("lsh_attention", dict(chunk_length=32, local_window=20, **LSH, **DROP)),
    "buckets, window": ("lsh_attention", dict(scope="bucket", local_window=70, **LSH)),
    "buckets, causal": (
        "lsh_attention",
        dict(scope="bucket", is_causal=True, allow_duplicate_attention=False, **LSH, **DROP),
    ),
}
# name: other sizes than those of `LARGE`
SIZES = {name: {"hk": 1} for name in CALLS if "one head" in name} | {
    "feed_forward, gated": {"gated": True}
}
