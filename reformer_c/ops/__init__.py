"""Arrays in, arrays out: every operation of the Reformer, forward and backward.

Each `op` gives the plain result, ``op_forward`` gives ``(out, saved)``, and
``op_backward(dout, saved)`` the gradients in the order of the inputs. Arrays are float32 or
float64, all of a call alike. Results do not depend on the number of threads, bit for bit.
"""

from .attention import (
    AttentionSaved,
    cut_share,
    full_attention,
    full_attention_backward,
    full_attention_forward,
    local_attention,
    local_attention_backward,
    local_attention_forward,
    lsh_attention,
    lsh_attention_backward,
    lsh_attention_forward,
)
from .decoding import AttentionCache
from .hashing import choose_num_buckets, lsh_hash, lsh_rotations
from .layers import (
    dropout,
    dropout_backward,
    dropout_forward,
    feed_forward,
    feed_forward_backward,
    feed_forward_forward,
    layer_norm,
    layer_norm_backward,
    layer_norm_forward,
    linear,
    linear_backward,
    linear_forward,
)
from .loss import cross_entropy_head, cross_entropy_head_backward, cross_entropy_head_forward
from .machine import fma_peak
from .quantized import (
    QuantizedWeight,
    dequantize,
    quantize,
    quantized_feed_forward,
    quantized_linear,
)
from .tables import (
    axial_positions,
    axial_positions_backward,
    axial_positions_forward,
    embedding,
    embedding_backward,
    embedding_forward,
)
from .training import adafactor_step, adamw_step, add_scaled, sum_of_squares

__all__ = [
    "AttentionCache",
    "AttentionSaved",
    "QuantizedWeight",
    "adafactor_step",
    "adamw_step",
    "add_scaled",
    "axial_positions",
    "axial_positions_backward",
    "axial_positions_forward",
    "choose_num_buckets",
    "cross_entropy_head",
    "cross_entropy_head_backward",
    "cross_entropy_head_forward",
    "cut_share",
    "dequantize",
    "dropout",
    "dropout_backward",
    "dropout_forward",
    "embedding",
    "embedding_backward",
    "embedding_forward",
    "feed_forward",
    "feed_forward_backward",
    "feed_forward_forward",
    "fma_peak",
    "full_attention",
    "full_attention_backward",
    "full_attention_forward",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear",
    "linear_backward",
    "linear_forward",
    "local_attention",
    "local_attention_backward",
    "local_attention_forward",
    "lsh_attention",
    "lsh_attention_backward",
    "lsh_attention_forward",
    "lsh_hash",
    "lsh_rotations",
    "quantize",
    "quantized_feed_forward",
    "quantized_linear",
    "sum_of_squares",
]
