"""A Reformer, forward, layer by layer as the paper's figures and Hugging Face's names have it.

Everything is kept, nothing is reversible, and there is no dropout. `w` is a dictionary of arrays
under the names of a bare model's ``state_dict``.
"""

import numpy as np

from . import attention
from .cross_entropy import cross_entropy_head
from .embedding import axial_positions, embedding, rotary_positions, sinusoidal_positions
from .feed_forward import feed_forward
from .hashing import lsh_hash
from .layer_norm import layer_norm
from .linear import linear


def body(
    w, config, ids, *, attention_mask=None, position_ids=None, hashing=None, memory=None,
    memory_mask=None,
):  # fmt: skip
    """ids (b, t) -> final states (b, t, 2c).

    hashing holds for each LSH layer its rotations (h, d, r, s), or bucket ids (b, h, r, t); for a
    layer that hashes keys of their own (2, b, h, r, t), of queries and of keys.
    With a memory (b, s, c') each layer has a third part, which looks at it, and the three take
    turns on the two streams.
    """
    b, t = np.shape(ids)
    positions = np.broadcast_to(np.arange(t) if position_ids is None else position_ids, (b, t))
    hashing = iter(hashing or ())
    words = embedding(ids, w["embeddings.word_embeddings.weight"])
    x1 = x2 = words + position_vectors(w, config, positions)
    for i, kind in enumerate(config.layer_types):
        layer = below(w, f"encoder.layers.{i}.")
        n = normed(x2, below(layer, "attention."), config)
        part = below(layer, "attention.")
        if kind.startswith("full"):
            heads = full(n, part, config, attention_mask, kind, positions)
        elif kind == "local":
            heads = local(n, part, config, attention_mask, positions)
        elif kind == "hash":
            heads = hashed(n, part, config, attention_mask, next(hashing), positions)
        else:
            heads = lsh(n, below(layer, "attention."), config, attention_mask, next(hashing))
        x1 = x1 + linear(side_by_side(heads), layer["attention.output.dense.weight"])
        x1, x2 = streams(config, x1, x2)
        if memory is not None:
            part = below(layer, "cross_attention.")
            heads = cross(normed(x1, part, config), memory, part, config, memory_mask)
            x2 = x2 + linear(side_by_side(heads), part["output.dense.weight"])
            x1, x2 = x2, x1
            x1, x2 = streams(config, x1, x2)
        n = normed(x1, below(layer, "feed_forward."), config)
        x2 = x2 + feed_forward(
            n,
            *dense(layer, "feed_forward.dense.dense"),
            *dense(layer, "feed_forward.output.dense"),
            *(dense(layer, "feed_forward.dense.up_proj") if config.feed_forward_gated else ()),
            activation=config.activation,
        )
        x2, x1 = streams(config, x2, x1)
    both = np.concatenate([x1, x2], axis=-1)
    return layer_norm(both, *dense(w, "encoder.layer_norm"), config.layer_norm_eps)


def language_model_loss(w, config, ids, labels, label_smoothing=0.0, **rest):
    """The loss of a model with a language model's head; causal where config.is_decoder."""
    h = body(below(w, "reformer."), config, ids, **rest)
    if config.is_decoder:
        h, labels = h[:, :-1], np.asarray(labels)[:, 1:]
    bias = w["lm_head.bias"]
    return cross_entropy_head(h, output_weight(w), bias, labels, label_smoothing=label_smoothing)


def language_model_logits(w, config, ids, **rest):
    h = body(below(w, "reformer."), config, ids, **rest)
    return linear(h, output_weight(w), w["lm_head.bias"])


def output_weight(w):
    """The weight of the output layer (v, 2 c); of shared embeddings, the words for each stream."""
    words = w["reformer.embeddings.word_embeddings.weight"]
    return w.get("lm_head.decoder.weight", np.concatenate([words, words], axis=1))


def encoder_decoder_logits(w, encoder, decoder, ids, written, *, attention_mask=None, hashing=()):
    """ids (b, s), and what is written so far (b, t) -> logits (b, t, v).

    hashing holds for each LSH layer of the encoder, and then of the decoder, as in `body`.
    """
    count = sum(kind in ("lsh", "hash") for kind in encoder.layer_types)
    memory = body(
        below(w, "encoder."), encoder, ids, attention_mask=attention_mask, hashing=hashing[:count]
    )
    words = "embeddings.word_embeddings.weight"
    w = {f"reformer.{words}": w[f"encoder.{words}"], **below(w, "decoder.")}
    h = body(
        below(w, "reformer."), decoder, written, hashing=hashing[count:], memory=memory,
        memory_mask=attention_mask,
    )  # fmt: skip
    return linear(h, output_weight(w), w["lm_head.bias"])


def encoder_decoder_loss(w, encoder, decoder, ids, written, labels, label_smoothing=0.0, **rest):
    """Cross-entropy of the logits with labels (b, t) in their own places."""
    logits = encoder_decoder_logits(w, encoder, decoder, ids, written, **rest)
    identity = np.eye(logits.shape[-1])
    return cross_entropy_head(
        logits, identity, np.zeros(len(identity)), labels, label_smoothing=label_smoothing
    )


# ---- pieces ----


def streams(config, updated, other):
    """Two streams, or twice the one that was updated last."""
    return (updated, other) if config.reversible else (updated, updated)


def below(w, prefix):
    return {name.removeprefix(prefix): w[name] for name in w if name.startswith(prefix)}


def dense(w, name):
    return w[f"{name}.weight"], w[f"{name}.bias"]


def normed(x, w, config):
    return layer_norm(x, *dense(w, "layer_norm"), config.layer_norm_eps)


def position_vectors(w, config, positions):
    if config.position_embedding_type in ("none", "rotary"):
        return 0.0
    if config.position_embedding_type == "sinusoidal":
        return config.axial_norm_std * sinusoidal_positions(positions, config.hidden_size)
    table = below(w, "embeddings.position_embeddings.")
    if "embedding.weight" in table:
        return embedding(positions, table["embedding.weight"])
    # (n1, 1, d1), (1, n2, d2)
    weights = [table[f"weights.{a}"] for a in range(len(table))]
    return axial_positions(positions, *(w.reshape(w.shape[a], -1) for a, w in enumerate(weights)))


def projected(n, w, name, config, inner="self_attention"):
    """(b, t, c) -> (b, h, t, d), in the weights' precision: attention's constants are rounded."""
    weight = w[f"{inner}.{name}.weight"]
    x = linear(n, weight).astype(weight.dtype)
    x = x.reshape(*x.shape[:2], -1, config.attention_head_size)
    return x.swapaxes(1, 2)


def side_by_side(heads):
    """(b, h, t, d) -> (b, t, h d)."""
    b, h, t, d = heads.shape
    return heads.swapaxes(1, 2).reshape(b, t, h * d)


def rules(config, kind, attention_mask):
    return {
        "chunk_length": config.attention(kind, "attn_chunk_length"),
        "num_chunks_before": config.attention(kind, "num_chunks_before"),
        "num_chunks_after": config.attention(kind, "num_chunks_after"),
        "is_causal": config.is_decoder,
        "attention_mask": attention_mask,
        "softcap": config.softcap,
        # with exact buckets a causal model is strictly causal: no window repeats on a circle
        "wrap": not (config.is_decoder and config.attention_scope == "bucket"),
    }


def full(n, w, config, attention_mask, kind, positions):
    names = ("query", "key", "value") if kind == "full" else ("query_key", "value")
    q, *k, v = (projected(n, w, name, config) for name in names)
    if kind == "full" and config.position_embedding_type == "rotary":
        q, k = rotated(q, config, positions), [rotated(k[0], config, positions)]
    options = {"is_causal": config.is_decoder, "softcap": config.softcap}
    return attention.full(q, k[0] if k else None, attention_mask=attention_mask, **options).output(
        v
    )


def local(n, w, config, attention_mask, positions):
    if config.local_shared_qk:
        qk, v = (projected(n, w, name, config) for name in ("query_key", "value"))
        return attention.local(qk, None, **rules(config, "local", attention_mask)).output(v)
    q, k, v = (projected(n, w, name, config) for name in ("query", "key", "value"))
    if config.position_embedding_type == "rotary":
        q, k = (rotated(x, config, positions) for x in (q, k))
    return attention.local(q, k, **rules(config, "local", attention_mask)).output(v)


def rotated(x, config, positions):
    """(b, h, t, d), in the precision of x."""
    y = rotary_positions(x.swapaxes(1, 2), positions, config.rope_theta)
    return y.swapaxes(1, 2).astype(x.dtype)


def cross(n, memory, w, config, memory_mask):
    q = projected(n, w, "query", config, "attention")
    k, v = (projected(memory, w, name, config, "attention") for name in ("key", "value"))
    return attention.full(q, k, attention_mask=memory_mask, softcap=config.softcap).output(v)


def lsh(n, w, config, attention_mask, hashing):
    qk, v = (projected(n, w, name, config) for name in ("query_key", "value"))
    if np.asarray(hashing).dtype.kind == "f":
        hashing = lsh_hash(qk, hashing, config.num_buckets, attention_mask)
    scope = {
        "scope": config.attention_scope,
        "bucket_cap": config.bucket_cap,
        "attend_across_buckets": config.lsh_attend_across_buckets,
        "allow_duplicate_attention": config.lsh_allow_duplicate_attention,
        **rules(config, "lsh", attention_mask),
    }
    return attention.lsh(qk, hashing, **scope).output(v)


def hashed(n, w, config, attention_mask, hashing, positions):
    """A query sees the keys in its buckets and those near it, each once; or all if none."""
    q, k, v = (projected(n, w, name, config) for name in ("query", "key", "value"))
    if config.position_embedding_type == "rotary":
        q, k = (rotated(x, config, positions) for x in (q, k))
    b, t = n.shape[:2]
    real = np.ones((b, t), bool) if attention_mask is None else np.asarray(attention_mask) != 0
    if np.asarray(hashing).dtype.kind == "f":
        centred = attention.for_each_head(k - mean_of_keys(k, real, config.is_decoder), q.shape[1])
        sides = (q, None), (centred, attention_mask)
        hashing = [lsh_hash(x, hashing, config.num_buckets, mask) for x, mask in sides]
    return attention.separate(
        q,
        k,
        *hashing,
        scope="bucket",
        is_causal=config.is_decoder,
        attention_mask=attention_mask,
        softcap=config.softcap,
        allow_duplicate_attention=False,
        local_window=config.hash_local_window,
    ).output(v)


def mean_of_keys(k, real, is_causal):
    """Of the real keys (b, hk, t, d): of all, or up to each."""
    real = real[:, None, :, None]
    sums, counts = (np.cumsum(np.float64(x), axis=2) for x in (k * real, real))
    if not is_causal:
        sums, counts = sums[:, :, -1:], counts[:, :, -1:]
    return (sums / np.maximum(counts, 1)).astype(k.dtype)
