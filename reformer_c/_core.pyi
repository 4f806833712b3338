"""The compiled core: positional arguments, checked; reformer_c.ops is its documented face.

Real arrays are float32 or float64, all of a call alike. `out` is None or the array to write to,
gradients named d... are added to in place, `matmul_precision` is "highest", "high" or "medium",
`workers` is at least 1.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ops.attention import AttentionSpec
from .ops.quantized import QuantizedWeight

Real = NDArray[np.floating[Any]]
Matrix = Real | QuantizedWeight
Integers = NDArray[np.integer[Any]]
Mask = NDArray[Any] | None

compiler: str
openmp: int
openmp_thread_limit: int

def linear_forward(
    x: Real,
    weight: Real,
    bias: Real | None,
    out: Real | None,
    matmul_precision: str,
    workers: int,
    /,
) -> Real: ...
def linear_backward(
    x: Real,
    weight: Real,
    dout: Real,
    dx: Real | None,
    dweight: Real,
    dbias: Real | None,
    matmul_precision: str,
    workers: int,
    /,
) -> Real: ...
def embedding_forward(ids: Integers, weight: Real, out: Real | None, workers: int, /) -> Real: ...
def embedding_backward(ids: Integers, dout: Real, dweight: Real, workers: int, /) -> None: ...
def axial_positions_forward(
    position_ids: Integers, /, *tables_out_workers: Real | int | None
) -> Real: ...
def axial_positions_backward(
    position_ids: Integers, dout: Real, /, *dtables_workers: Real | int
) -> None: ...
def rotary_positions_forward(
    x: Real, position_ids: Integers, theta: float, out: Real | None, workers: int, /
) -> Real: ...
def rotary_positions_backward(
    position_ids: Integers, theta: float, dout: Real, out: Real | None, workers: int, /
) -> Real: ...
def layer_norm_forward(
    x: Real, weight: Real, bias: Real, eps: float, out: Real | None, workers: int, /
) -> tuple[Real, Real, Real]: ...
def layer_norm_backward(
    x: Real,
    weight: Real,
    mean: Real,
    rstd: Real,
    dout: Real,
    dweight: Real,
    dbias: Real,
    workers: int,
    /,
) -> Real: ...
def dropout(x: Real, p: float, key: int, out: Real | None, workers: int, /) -> Real: ...
def feed_forward_forward(
    x: Real,
    w1: Real,
    b1: Real,
    w2: Real,
    b2: Real,
    activation: str,
    chunk_length: int,
    dropout: float,
    dropout_key: int,
    out: Real | None,
    matmul_precision: str,
    workers: int,
    /,
) -> Real: ...
def feed_forward_backward(
    x: Real,
    w1: Real,
    b1: Real,
    w2: Real,
    b2: Real,
    activation: str,
    chunk_length: int,
    dropout: float,
    dropout_key: int,
    dout: Real,
    value_out: Real | None,
    dw1: Real,
    db1: Real,
    dw2: Real,
    db2: Real,
    matmul_precision: str,
    workers: int,
    /,
) -> Real: ...
def cross_entropy_head_forward(
    h: Real,
    weight: Real,
    bias: Real | None,
    labels: Integers,
    ignore_index: int,
    label_smoothing: float,
    chunk_length: int,
    matmul_precision: str,
    workers: int,
    /,
) -> tuple[float, float]: ...
def cross_entropy_head_backward(
    h: Real,
    weight: Real,
    bias: Real | None,
    labels: Integers,
    ignore_index: int,
    label_smoothing: float,
    chunk_length: int,
    dloss: float,
    dweight: Real,
    dbias: Real | None,
    matmul_precision: str,
    workers: int,
    /,
) -> Real: ...
def lsh_hash(
    name: str,
    x: Real,
    num_buckets: tuple[int, ...],
    rotations: Real,
    attention_mask: Mask,
    out: NDArray[np.int32] | None,
    workers: int,
    /,
) -> NDArray[np.int32]: ...
def attention_forward(
    spec: AttentionSpec,
    q: Real,
    k: Real | None,
    v: Real,
    attention_mask: Mask,
    bucket_ids: int,
    buckets: Integers | None,
    out: Real | None,
    workers: int,
    /,
) -> tuple[Real, Real]: ...
def attention_backward(
    spec: AttentionSpec,
    q: Real,
    k: Real | None,
    v: Real,
    attention_mask: Mask,
    bucket_ids: int,
    buckets: Integers | None,
    out: Real,
    lse: Real,
    dout: Real,
    workers: int,
    /,
) -> tuple[Real, ...]: ...
def decode_attention(
    spec: AttentionSpec,
    eps: float,
    theta: float,
    x: Real,
    weight: Real,
    bias: Real,
    wq: Matrix,
    wk: Matrix | None,
    wv: Matrix,
    wo: Matrix,
    num_buckets: tuple[int, ...],
    rotations: Real | None,
    keys: Real,
    values: Real,
    buckets: NDArray[np.int32] | None,
    previous: NDArray[np.int32] | None,
    rows: Integers,
    positions: Integers,
    y: Real,
    workers: int,
    /,
) -> None: ...
def quantized_linear(
    x: Real,
    weight: Matrix,
    bias: Real | None,
    out: Real | None,
    workers: int,
    /,
) -> Real: ...
def quantized_feed_forward(
    x: Real,
    w1: Matrix,
    b1: Real,
    w2: Matrix,
    b2: Real,
    activation: str,
    out: Real | None,
    workers: int,
    /,
) -> Real: ...
def add_scaled(y: Real, x: Real, alpha: float, workers: int, /) -> None: ...
def sum_of_squares(x: Real, workers: int, /) -> float: ...
def adamw_step(
    w: Real,
    m: Real,
    s: Real,
    g: Real,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float,
    workers: int,
    /,
) -> None: ...
def adafactor_step(
    w: Real,
    g: Real,
    row: Real | None,
    column: Real | None,
    s: Real | None,
    m: Real | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    clip_threshold: float,
    weight_decay: float,
    workers: int,
    /,
) -> None: ...
def fma_peak(like: Real, seconds: float, workers: int, /) -> float: ...
def layer_scratch(
    like: Real,
    op: str,
    n: int,
    columns_in: int,
    columns_out: int,
    chunk_length: int,
    matmul_precision: str,
    workers: int,
    /,
) -> tuple[float, float]: ...
def attention_scratch(
    like: Real,
    spec: AttentionSpec,
    b: int,
    h: int,
    t: int,
    d: int,
    r: int,
    bucket_ids: int,
    workers: int,
    /,
) -> tuple[float, float]: ...
def select_isa(name: str, /) -> None: ...
def isa() -> str: ...
def isas() -> tuple[str, ...]: ...
def isas_built() -> tuple[str, ...]: ...
def pool_enter() -> object: ...
def pool_exit(before: object, /) -> None: ...
def pool_cached() -> int: ...
def pool_trim() -> int: ...
def pool_set_memory(bytes: int, /) -> None: ...
def openmp_threads() -> int: ...
def openmp_processors() -> set[int]: ...
def forked() -> bool: ...
