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

_Real = NDArray[np.floating[Any]]
_Bfloat16 = NDArray[np.uint16]
_Fixed = NDArray[np.int16] | NDArray[np.int32]
_Matrix = _Real | QuantizedWeight
_Integers = NDArray[np.integer[Any]]
_Mask = NDArray[Any] | None

compiler: str
openmp: int
openmp_thread_limit: int

def linear_forward(
    x: _Real,
    weight: _Real,
    bias: _Real | None,
    out: _Real | None,
    matmul_precision: str,
    workers: int,
    /,
) -> _Real: ...
def linear_backward(
    x: _Real,
    weight: _Real,
    dout: _Real,
    dx: _Real | None,
    dweight: _Real,
    dbias: _Real | None,
    matmul_precision: str,
    workers: int,
    /,
) -> _Real: ...
def embedding_forward(
    ids: _Integers, weight: _Real, out: _Real | None, workers: int, /
) -> _Real: ...
def embedding_backward(ids: _Integers, dout: _Real, dweight: _Real, workers: int, /) -> None: ...
def axial_positions_forward(
    position_ids: _Integers, /, *tables_out_workers: _Real | int | None
) -> _Real: ...
def axial_positions_backward(
    position_ids: _Integers, dout: _Real, /, *dtables_workers: _Real | int
) -> None: ...
def rotary_positions_forward(
    x: _Real, position_ids: _Integers, theta: float, out: _Real | None, workers: int, /
) -> _Real: ...
def rotary_positions_backward(
    position_ids: _Integers, theta: float, dout: _Real, out: _Real | None, workers: int, /
) -> _Real: ...
def layer_norm_forward(
    x: _Real, weight: _Real, bias: _Real, eps: float, out: _Real | None, workers: int, /
) -> tuple[_Real, _Real, _Real]: ...
def layer_norm_backward(
    x: _Real,
    weight: _Real,
    mean: _Real,
    rstd: _Real,
    dout: _Real,
    dweight: _Real,
    dbias: _Real,
    workers: int,
    /,
) -> _Real: ...
def dropout(x: _Real, p: float, key: int, out: _Real | None, workers: int, /) -> _Real: ...
def feed_forward_forward(
    x: _Real,
    w1: _Real,
    b1: _Real,
    w2: _Real,
    b2: _Real,
    w3: _Real | None,
    b3: _Real | None,
    activation: str,
    chunk_length: int,
    dropout: float,
    dropout_key: int,
    out: _Real | None,
    matmul_precision: str,
    workers: int,
    /,
) -> _Real: ...
def feed_forward_backward(
    x: _Real,
    w1: _Real,
    b1: _Real,
    w2: _Real,
    b2: _Real,
    w3: _Real | None,
    b3: _Real | None,
    activation: str,
    chunk_length: int,
    dropout: float,
    dropout_key: int,
    dout: _Real,
    value_out: _Real | None,
    dw1: _Real,
    db1: _Real,
    dw2: _Real,
    db2: _Real,
    dw3: _Real | None,
    db3: _Real | None,
    matmul_precision: str,
    workers: int,
    /,
) -> _Real: ...
def cross_entropy_head_forward(
    h: _Real,
    weight: _Real,
    bias: _Real | None,
    labels: _Integers,
    ignore_index: int,
    label_smoothing: float,
    chunk_length: int,
    matmul_precision: str,
    workers: int,
    /,
) -> tuple[float, float]: ...
def cross_entropy_head_backward(
    h: _Real,
    weight: _Real,
    bias: _Real | None,
    labels: _Integers,
    ignore_index: int,
    label_smoothing: float,
    chunk_length: int,
    dloss: float,
    dweight: _Real,
    dbias: _Real | None,
    matmul_precision: str,
    workers: int,
    /,
) -> _Real: ...
def lsh_hash(
    name: str,
    x: _Real,
    num_buckets: tuple[int, ...],
    rotations: _Real,
    attention_mask: _Mask,
    out: NDArray[np.int32] | None,
    workers: int,
    /,
) -> NDArray[np.int32]: ...
def attention_forward(
    spec: AttentionSpec,
    q: _Real,
    k: _Real | None,
    v: _Real,
    attention_mask: _Mask,
    bucket_ids: int,
    buckets: _Integers | None,
    key_buckets: _Integers | None,
    out: _Real | None,
    log_sums: _Real | None,
    workers: int,
    /,
) -> tuple[_Real, _Real]: ...
def attention_backward(
    spec: AttentionSpec,
    q: _Real,
    k: _Real | None,
    v: _Real,
    attention_mask: _Mask,
    bucket_ids: int,
    buckets: _Integers | None,
    key_buckets: _Integers | None,
    out: _Real,
    lse: _Real,
    dout: _Real,
    workers: int,
    /,
) -> tuple[_Real, ...]: ...
def decode_attention(
    spec: AttentionSpec,
    eps: float,
    theta: float,
    drop: int,
    x: _Real,
    weight: _Real,
    bias: _Real,
    wq: _Matrix,
    wk: _Matrix | None,
    wv: _Matrix,
    wo: _Matrix,
    num_buckets: tuple[int, ...],
    rotations: _Real | None,
    keys: _Real | _Bfloat16,
    values: _Real | _Bfloat16,
    buckets: NDArray[np.int32] | None,
    previous: NDArray[np.int32] | None,
    rows: _Integers,
    positions: _Integers,
    y: _Real,
    workers: int,
    /,
) -> None: ...
def index_attention(
    q: _Real,
    keys: _Real,
    values: _Real,
    attention_mask: _Mask,
    newest: NDArray[np.int32],
    previous: NDArray[np.int32],
    ids: _Integers,
    length: int,
    window: int,
    sinks: int,
    softcap: float,
    out: _Real | None,
    found: NDArray[np.int32] | None,
    workers: int,
    /,
) -> tuple[_Real, _Real, NDArray[np.int32]]: ...
def quantized_linear(
    x: _Real,
    weight: _Matrix,
    bias: _Real | None,
    out: _Real | None,
    workers: int,
    /,
) -> _Real: ...
def quantized_feed_forward(
    x: _Real,
    w1: _Matrix,
    b1: _Real,
    w2: _Matrix,
    b2: _Real,
    w3: _Matrix | None,
    b3: _Real | None,
    activation: str,
    out: _Real | None,
    workers: int,
    /,
) -> _Real: ...
def to_bfloat16(x: _Real, out: _Bfloat16 | None, workers: int, /) -> _Bfloat16: ...
def from_bfloat16(x: _Bfloat16, out: _Real, workers: int, /) -> None: ...
def add_scaled(y: _Real, x: _Real, alpha: float, workers: int, /) -> None: ...
def add_rounded(y: _Bfloat16 | _Fixed, x: _Real, alpha: float, workers: int, /) -> float: ...
def from_fixed_point(x: _Fixed, out: _Real, workers: int, /) -> None: ...
def sum_of_squares(x: _Real, workers: int, /) -> float: ...
def adamw_step(
    w: _Real,
    m: _Real,
    s: _Real,
    g: _Real,
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
    w: _Real,
    g: _Real,
    row: _Real | None,
    column: _Real | None,
    s: _Real | None,
    m: _Real | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    clip_threshold: float,
    weight_decay: float,
    workers: int,
    /,
) -> None: ...
def fma_peak(like: _Real, seconds: float, workers: int, /) -> float: ...
def layer_scratch(
    like: _Real,
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
    like: _Real,
    spec: AttentionSpec,
    b: int,
    h: int,
    t: int,
    tk: int,
    hk: int,
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
def memory() -> tuple[int, int, int] | None: ...
def forked() -> bool: ...
