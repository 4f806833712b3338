"""The measurements: groups of calls that do the same work, each with its targets."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

import reformer_c as rc
from reformer_c import _core
from reformer_c.precision import PRECISIONS
from reformer_c.tools.bench import (
    CHUNK,
    HEADS,
    WINDOW,
    Case,
    Measurement,
    draw,
    draw_feed_forward,
    draw_model,
    feed_forward_operations,
    full_operations,
    in_each_precision,
    in_precisions,
    training_operations,
    training_step,
    window_operations,
)

from . import rivals

OURS = "reformer_c"
# required speed-up of matmul_precision="medium" on instruction sets that multiply bfloat16: matrix
# products, LSH and local attention, training steps
MEDIUM = {"amx": (2.5, 1.5, 1.7), "avx512_bf16": (1.6, 1.3, 1.35)}


@dataclass(frozen=True)
class Goal:
    """A target for a group's measurements.

    The GFLOP/s of `case` as a multiple of those of the fastest library's matrix product; or, given
    `than`, its speed-up over that case, or the microseconds that it takes more.
    """

    work: str
    case: str
    required: float | None
    than: str | None = None
    unit: str = "of product"

    def value(self, rows: dict[str, Measurement], product: float) -> float | None:
        """The measured value, given the product's GFLOP/s; None if a rival is missing."""
        if self.case not in rows or (self.than is not None and self.than not in rows):
            return None
        if self.than is None:
            return rows[self.case].gigaflops / product
        mine, other = rows[self.case].milliseconds, rows[self.than].milliseconds
        return 1e3 * (mine - other) if self.unit == "µs" else other / mine

    def holds(self, value: float | None) -> bool | None:
        if value is None or self.required is None:
            return None
        return value <= self.required if self.unit == "µs" else value >= self.required


def faster(work: str, case: str, than: str, required: float | None) -> Goal:
    return Goal(work, case, required, than, "times")


@dataclass
class Group:
    """Calls that are measured in turns and compared with the first."""

    title: str
    cases: list[Case]
    goals: list[Goal] = field(default_factory=list)


# ---- attention ----


def lsh(t: int, threads: int) -> Iterator[Group]:
    qk, v, dout = draw(t)
    forward = partial(rc.lsh_attention_forward, qk, v, rng=0, out=np.empty_like(v), **WINDOW)
    backward = rc.reuse_memory()(partial(rc.lsh_attention_backward, dout, forward()[1]))
    work = partial(Case, tokens=t, threads=threads)
    alone, undo = window_operations(t), 2.5 * window_operations(t)
    rival = t <= 16384
    yield Group(
        f"LSH attention, 1 round, {t:,} tokens, forward; our backward",
        [
            work(OURS, operations=alone, call=forward),
            *_rivals(work, alone, rivals.lsh_attention(qk, v) if rival else {}),
            work("backward", operations=undo, call=backward),
        ],
        [
            Goal(f"LSH forward, {t:,}", OURS, 1.0),
            Goal(f"LSH backward, {t:,}", "backward", 1.0),
            *_than_hugging_face(f"LSH forward, {t:,}", {16384: 16.0}.get(t), rival),
        ],
    )
    if rival:
        yield Group(
            f"LSH attention, 1 round, {t:,} tokens, forward + backward",
            [
                work(
                    OURS,
                    operations=alone + undo,
                    call=_both(forward, partial(rc.lsh_attention_backward, dout)),
                ),
                *_rivals(work, alone + undo, rivals.lsh_attention(qk, v, backward=True)),
            ],
            _than_hugging_face(f"LSH forward + backward, {t:,}", {16384: 10.0}.get(t)),
        )


def local(t: int, threads: int) -> Iterator[Group]:
    q, v, dout = draw(t)
    forward = partial(rc.local_attention_forward, q, q, v, out=np.empty_like(v), **WINDOW)
    work = partial(Case, tokens=t, threads=threads)
    alone, both = window_operations(t), 3.5 * window_operations(t)
    rival = t <= 16384
    calls = rivals.local_attention(q, q, v) if rival else {}
    if t == 16384:
        calls |= rivals.flex_attention(q, q, v)
    yield Group(
        f"local attention, {t:,} tokens, forward",
        [work(OURS, operations=alone, call=forward), *_rivals(work, alone, calls)],
        [
            Goal(f"local forward, {t:,}", OURS, 1.0),
            *_than_hugging_face(f"local forward, {t:,}", None, rival),
        ],
    )
    if rival:
        pair = _both(forward, partial(rc.local_attention_backward, dout))
        yield Group(
            f"local attention, {t:,} tokens, forward + backward",
            [
                work(OURS, operations=both, call=pair),
                *_rivals(work, both, rivals.local_attention(q, q, v, backward=True)),
            ],
            _than_hugging_face(f"local forward + backward, {t:,}", None),
        )


def full(t: int, threads: int) -> Iterator[Group]:
    q, k, v = draw(t)
    out = np.empty_like(v)
    work = partial(Case, tokens=t, threads=threads)
    hashed, sdpa = "reformer_c, LSH-1", rivals.SDPA
    yield Group(
        f"full causal attention, {t:,} tokens, forward; and LSH attention instead",
        [
            work(OURS, operations=full_operations(t),
                 call=partial(rc.full_attention, q, k, v, is_causal=True, out=out)),
            *_rivals(work, full_operations(t), rivals.full_attention(q, k, v)),
            work(hashed, operations=window_operations(t),
                 call=partial(rc.lsh_attention, q, v, rng=0, out=out, **WINDOW)),
        ],
        [
            faster(f"full forward against torch SDPA, {t:,}", OURS, sdpa, 1.3),
            faster(f"LSH forward against torch SDPA, {t:,}", hashed, sdpa,
                   {1024: 4.0, 4096: 12.0}.get(t)),
        ],
    )  # fmt: skip


def scope(t: int, threads: int) -> Iterator[Group]:
    qk, v, _ = draw(t)
    out = np.empty_like(v)
    chunk, bucket = (f'{OURS}, scope="{name}"' for name in ("chunk", "bucket"))
    yield Group(
        f"LSH attention, 1 round, {t:,} tokens: chunks against whole buckets",
        [
            # the same count for both, although whole buckets need fewer products
            Case(name, t, window_operations(t),
                 partial(rc.lsh_attention, qk, v, rng=0, scope=which, out=out, **WINDOW), threads)
            for name, which in ((chunk, "chunk"), (bucket, "bucket"))
        ],
        [faster(f"whole buckets against chunks, {t:,}", bucket, chunk, 1.5 if t > 1024 else None)],
    )  # fmt: skip


# ---- products ----


def feed_forward(sizes: tuple[int, int], threads: int) -> Iterator[Group]:
    t, (c, f) = 4096, sizes
    x, *weights = draw_feed_forward(t, c, f)
    operations = feed_forward_operations(t, c, f)
    work = partial(Case, tokens=t, threads=threads)
    yield Group(
        f"feed-forward {c:,}-{f:,}, relu, {t:,} tokens, forward",
        [
            work(
                OURS,
                operations=operations,
                call=partial(rc.feed_forward, x, *weights, out=np.empty_like(x)),
            ),
            *_rivals(work, operations, rivals.feed_forward(x, *weights)),
        ],
        [
            Goal(f"feed-forward {c:,}-{f:,}", OURS, 1.0),
            faster(f"feed-forward {c:,}-{f:,} against torch", OURS, rivals.TORCH, 0.95),
        ],
    )


def product(n: int, threads: int) -> Iterator[Group]:
    a, b = np.random.default_rng(0).standard_normal((2, n, n), np.float32)
    work = partial(Case, tokens=n, threads=threads)
    yield Group(
        f"a @ b, {n:,} by {n:,}",
        [
            work(OURS, operations=2.0 * n**3, call=partial(rc.linear, a, b)),
            *_rivals(work, 2.0 * n**3, rivals.product(a, b.T)),
        ],
    )


# ---- operands rounded to bfloat16 ----


def precision_products(sizes: tuple[int, int], threads: int) -> Iterator[Group]:
    t, (c, f) = 4096, sizes
    x, *weights = draw_feed_forward(t, c, f)
    for name, layers, width, forward, backward in (
        ("linear", 1, f, rc.linear_forward, rc.linear_backward),
        ("feed-forward", 2, c, rc.feed_forward_forward, rc.feed_forward_backward),
    ):
        own, out = weights[: 2 * layers], np.empty((t, width), np.float32)
        yield from _precise_passes(
            f"{name} {c:,}-{f:,}", t, threads, layers * feed_forward_operations(t, c, f) / 2, 3.0,
            partial(forward, x, *own, out=out), partial(backward, np.ones_like(out)), _medium(0),
            {rivals.TORCH: partial(rivals.linear_layers, x, *own)},
        )  # fmt: skip


def precision_attention(t: int, threads: int) -> Iterator[Group]:
    qk, v, dout = draw(t)
    for name, forward, backward in (
        ("LSH", partial(rc.lsh_attention_forward, qk, v, rng=0), rc.lsh_attention_backward),
        ("local", partial(rc.local_attention_forward, qk, qk, v), rc.local_attention_backward),
    ):
        yield from _precise_passes(
            f"{name} attention, {t:,}", t, threads, window_operations(t), 3.5,
            partial(forward, out=np.empty_like(v), **WINDOW), partial(backward, dout), _medium(1),
            {},
        )  # fmt: skip
    n = min(t, 4096)
    q, v, dout = (np.ascontiguousarray(x[:, :, :n]) for x in (qk, v, dout))
    yield from _precise_passes(
        f"full attention, {n:,}", n, threads, full_operations(n), 3.5,
        partial(rc.full_attention_forward, q, q, v, is_causal=True, out=np.empty_like(v)),
        partial(rc.full_attention_backward, dout), None,
        {rivals.SDPA: partial(rivals.full_attention, q, q, v)},
    )  # fmt: skip


def precision_step(t: int, threads: int) -> Iterator[Group]:
    model, ids = draw_model(t, layers=2)
    theirs = partial(rivals.training_step, model.config, model.parameters, ids)
    yield _precise(
        f"training step, two layers, {t:,}", t, threads, training_operations(model.config, t),
        in_precisions(training_step(model, ids)), _medium(2), {rivals.HUGGING_FACE: theirs},
    )  # fmt: skip


def _medium(kind: int) -> float | None:
    return MEDIUM[_core.isa()][kind] if _core.isa() in MEDIUM else None


def _precise_passes(
    title: str, t: int, threads: int, operations: float, both: float,
    forward: Callable[..., Any], backward: Callable[..., Any], required: float | None,
    theirs: dict[str, Callable[..., dict[str, Any]]],
) -> Iterator[Group]:  # fmt: skip
    """Groups for forward, and for forward and backward, which has `both` times the operations."""
    alone = {p: partial(forward, matmul_precision=p) for p in PRECISIONS}
    pairs = {p: _both(call, backward) for p, call in alone.items()}
    for words, share, calls in (("forward", 1.0, alone), ("forward + backward", both, pairs)):
        yield _precise(
            f"{title}, {words}", t, threads, share * operations, calls, required,
            {name: partial(make, backward=calls is pairs) for name, make in theirs.items()},
        )  # fmt: skip


def _precise(
    title: str, t: int, threads: int, operations: float, calls: Mapping[str, Callable[..., Any]],
    required: float | None, theirs: dict[str, Callable[..., dict[str, Any]]],
) -> Group:  # fmt: skip
    """Ours in every precision; rivals under autocast if the processor has bfloat16 instructions."""
    cases = [
        replace(case, name=f"{OURS}, {case.matmul_precision}")
        for case in in_each_precision(OURS, t, operations, threads, calls)
    ]
    if _core.isa() in MEDIUM:
        work = partial(Case, tokens=t, threads=threads)
        for make in theirs.values():
            cases += _rivals(work, operations, make(autocast=True))
    highest, medium = cases[0].name, f"{OURS}, medium"
    goals = [faster(f"{title}: medium against highest", medium, highest, required)]
    for name in theirs:
        rival = name + rivals.AUTOCAST
        goals.append(faster(f"{title}: medium against {rival}", medium, rival, 1.0))
    return Group(f"{title}, on {_core.isa()}", cases, goals)


# ---- reformer_c compared with itself ----


def threads(t: int, threads: int) -> Iterator[Group]:
    if threads == 1:
        return
    qk, v, dout = draw(t)
    forward = partial(rc.lsh_attention_forward, qk, v, rng=0, out=np.empty_like(v), **WINDOW)
    backward = rc.reuse_memory()(partial(rc.lsh_attention_backward, dout, forward()[1]))
    cases, goals = [], []
    for name, share, call in (("forward", 1.0, forward), ("backward", 2.5, backward)):
        many, one = (f"{name}, {n} thread{'s' * (n > 1)}" for n in (threads, 1))
        operations = share * window_operations(t)
        cases += [
            Case(many, t, operations, call, threads),
            Case(one, t, operations, call, 1),
        ]
        required = 1.85 if threads == 2 and t >= 16384 else None
        goals.append(faster(f"{threads} threads against 1, LSH {name}, {t:,}", many, one, required))
    yield Group(f"LSH attention, 1 round, {t:,} tokens: threads", cases, goals)


def float64(t: int, threads: int) -> Iterator[Group]:
    cases = []
    for dtype in (np.float32, np.float64):
        qk, v, _ = draw(t, dtype)
        call = partial(rc.lsh_attention, qk, v, rng=0, out=np.empty_like(v), **WINDOW)
        cases.append(Case(dtype.__name__, t, window_operations(t), call, threads, dtype))
    single, double = (case.name for case in cases)
    yield Group(
        f"LSH attention, 1 round, {t:,} tokens: float64 against float32",
        cases,
        [faster(f"float64 against float32, LSH forward, {t:,}", double, single, 0.5)],
    )


def overhead(t: int, threads: int) -> Iterator[Group]:
    """A small call compared with one into the extension that does nothing."""
    qk, v = np.random.default_rng(0).standard_normal((2, 1, 1, t, 16), np.float32)
    bare = "a bare extension call"
    calls: dict[str, Callable[..., Any]] = {
        bare: lambda workers: _core.isa(),
        "full attention": partial(rc.full_attention, qk, qk, v),
        "LSH attention": partial(rc.lsh_attention, qk, v),
        "local attention": partial(rc.local_attention, qk, qk, v),
    }
    yield Group(
        f"a call at (1, 1, {t}, 16)",
        [
            Case(name, t, 4.0 * t * t * 16 * (name != bare), call, threads)
            for name, call in calls.items()
        ],
        [
            Goal(f"{name}, (1, 1, {t}, 16), over {bare}", name, 15.0, bare, "µs")
            for name in calls
            if name != bare
        ],
    )


def _rivals(work: Callable[..., Case], operations: float, calls: dict[str, Any]) -> list[Case]:
    return [
        work(name, operations=operations, call=lambda workers, call=call: call())
        for name, call in calls.items()
    ]


def _than_hugging_face(work: str, required: float | None, there: bool = True) -> list[Goal]:
    name = f"{work}, against Hugging Face"
    return [faster(name, OURS, rivals.HUGGING_FACE, required)] if there else []


def _both(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    def call(workers: int) -> Any:
        return backward(forward(workers=workers)[1], workers=workers)

    return call


# by name: the function, and its sizes, smallest first
GROUPS: dict[str, tuple[Callable[[Any, int], Iterator[Group]], tuple[Any, ...]]] = {
    "lsh": (lsh, (1024, 16384, 65536)),
    "local": (local, (1024, 16384, 65536)),
    "full": (full, (1024, 4096)),
    "feed-forward": (feed_forward, ((256, 512), (512, 2048), (1024, 4096))),
    "product": (product, (1024,)),
    "precision-products": (precision_products, ((256, 512), (512, 2048), (1024, 4096))),
    "precision-attention": (precision_attention, (1024, 16384)),
    "precision-step": (precision_step, (1024, 16384)),
    "scope": (scope, (1024, 16384, 65536)),
    "threads": (threads, (1024, 16384)),
    "float64": (float64, (1024, 16384)),
    "overhead": (overhead, (64,)),
}
METHOD = f"""
float32, {HEADS} heads of 64, chunks of {CHUNK} with one of look-back, causal.
Operations are those of the dense windows (full attention: of the visible half); a backward pass
counts as 2.5 forward passes, of linear layers as 2. Hashing, sorting and softmax are included in
the time but not in the count. A backward pass timed alone returns reused memory. Calls of a group
run in turns, the peak is measured before each, the fastest run counts. "product" is GFLOP/s as a
multiple of those of the fastest library's product of two 2,048 x 2,048 matrices, measured in the
same turns. "high" and "medium" are values of matmul_precision, as shares of float32's peak;
"autocast" is torch.autocast to bfloat16.
"""
