/* table.c: one core. A variant includes this file after it has set its element type; its
   instruction set comes from the compiler's flags. No code of its own. */
#include "attention_forward.c"
#include "attention_backward.c"
#include "bfloat16.c"
#include "couple.c"
#include "cross_entropy.c"
#include "dropout.c"
#include "embedding.c"
#include "layer_norm.c"
#include "linear.c"
#include "rotary.c"
#include "decode.c" // calls layer_norm.c and rotary.c
#include "feed_forward.c"
#include "key_value_index.c" // calls decode.c
#include "lsh_hash.c"
#include "optimizer.c"
#include "peak.c"

const RF_OPS RF_TABLE = {
    .linear_workspace = linear_workspace,
    .linear_backward_workspace = linear_backward_workspace,
    .linear_forward = linear_forward,
    .linear_backward = linear_backward,
    .embedding_forward = embedding_forward,
    .embedding_backward = embedding_backward,
    .axial_positions_forward = axial_positions_forward,
    .axial_positions_backward = axial_positions_backward,
    .rotary_positions_forward = rotary_positions_forward,
    .rotary_positions_backward = rotary_positions_backward,
    .layer_norm_forward = layer_norm_forward,
    .layer_norm_backward_workspace = layer_norm_backward_workspace,
    .layer_norm_backward = layer_norm_backward,
    .dropout = dropout,
    .feed_forward_workspace = feed_forward_workspace,
    .feed_forward_forward = feed_forward_forward,
    .feed_forward_backward_workspace = feed_forward_backward_workspace,
    .feed_forward_backward = feed_forward_backward,
    .cross_entropy_head_workspace = cross_entropy_head_workspace,
    .cross_entropy_head_forward = cross_entropy_head_forward,
    .cross_entropy_head_backward = cross_entropy_head_backward,
    .lsh_hash_workspace = lsh_hash_workspace,
    .lsh_hash = lsh_hash,
    .attention_workspace = attention_workspace,
    .attention_forward = attention_forward,
    .attention_backward_workspace = attention_backward_workspace,
    .attention_backward = attention_backward,
    .decode_attention_workspace = decode_attention_workspace,
    .decode_attention = decode_attention,
    .index_attention_workspace = index_attention_workspace,
    .index_attention = index_attention,
    .quantized_linear = linear_small_batch,
    .quantized_feed_forward_workspace = quantized_feed_forward_workspace,
    .quantized_feed_forward = quantized_feed_forward,
    .to_bfloat16 = to_bfloat16,
    .from_bfloat16 = from_bfloat16,
    .add_scaled = add_scaled,
    .add_rounded = add_rounded,
    .from_fixed_point = from_fixed_point,
    .sum_of_squares = sum_of_squares,
    .adamw_step = adamw_step,
    .adafactor_step_workspace = adafactor_step_workspace,
    .adafactor_step = adafactor_step,
    .fma_peak = fma_peak,
};
