"""NumPy's masked arrays: their mask is never dropped in silence, whatever they are passed as."""

import numpy as np
import pytest
from small_models import small_config

import reformer_c as rc
from reformer_c import ops


def masked(x):
    return np.ma.masked_array(x, np.zeros(np.shape(x), bool))


x, ids = np.ones((6, 4)), np.arange(6)
heads = np.ones((1, 2, 6, 4))
LSH = dict(num_hashes=1, num_buckets=4, chunk_length=2)
ROWS = dict(x=x, weight=np.ones(4), bias=np.ones(4))
CALLS = {
    ops.linear: dict(x=x, weight=np.ones((3, 4)), bias=np.ones(3), out=np.ones((6, 3))),
    ops.layer_norm: ROWS,
    ops.dropout: dict(x=x, out=x.copy()),
    ops.embedding: dict(ids=ids, weight=np.ones((6, 4))),
    ops.axial_positions: dict(position_ids=ids, w0=np.ones((2, 2)), w1=np.ones((3, 2))),
    ops.feed_forward: dict(
        x=x, w1=np.ones((5, 4)), b1=np.ones(5), w2=np.ones((4, 5)), b2=np.ones(4)
    ),
    ops.cross_entropy_head: dict(h=x, weight=np.ones((6, 4)), bias=np.ones(6), labels=ids),
    ops.full_attention: dict(q=heads, k=heads, v=heads, attention_mask=np.ones((1, 6))),
    ops.local_attention: dict(q=heads, k=heads, v=heads, attention_mask=np.ones((1, 6))),
    ops.lsh_hash: dict(x=heads, rotations=np.ones((2, 4, 1, 2)), attention_mask=np.ones((1, 6))),
    ops.lsh_attention: dict(
        qk=heads, v=heads, buckets=np.zeros((1, 2, 1, 6), int), attention_mask=np.ones((1, 6))
    ),
}
OTHERS = {
    ops.dropout: dict(p=0.5, key=1), ops.lsh_hash: dict(num_hashes=1, num_buckets=4),
    ops.local_attention: dict(chunk_length=2), ops.lsh_attention: LSH,
}  # fmt: skip


@pytest.mark.parametrize(
    ("op", "name"), [(op, name) for op, given in CALLS.items() for name in given]
)
def test_every_op_names_the_masked_argument(op, name):
    arguments = CALLS[op] | OTHERS.get(op, {})

    def call(**changes):
        return op(**arguments | changes)

    call()
    with pytest.raises(TypeError, match=rf"^{name} must not be a masked array.*filled.*mask"):
        call(**{name: masked(arguments[name])})
    if name != "out":
        with pytest.raises(TypeError, match=rf"^{name} must not be a masked array"):
            call(**{name: [masked(row) for row in arguments[name]]})
        ragged = [[1.0, 2.0], [3.0]]
        with pytest.raises(ValueError, match=rf"^{name} must be an array, got rows of several"):
            call(**{name: ragged})


def test_backward_passes_and_optimizers_name_it_too():
    y, saved = ops.linear_forward(x, np.ones((3, 4)))
    with pytest.raises(TypeError, match=r"^dout must not be a masked array"):
        ops.linear_backward(masked(y), saved)
    out, saved = ops.lsh_attention_forward(heads, heads, **LSH)
    with pytest.raises(TypeError, match=r"^dout must not be a masked array"):
        ops.lsh_attention_backward(masked(out), saved)
    with pytest.raises(TypeError, match="masked array"):
        ops.sum_of_squares(masked(x))


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "position_ids", "labels"])
def test_a_model_names_the_masked_argument(name):
    model = rc.ReformerModelWithLMHead(small_config())
    rows = np.ones((2, 8), int)
    given = dict(input_ids=rows, attention_mask=rows, position_ids=rows, labels=rows)
    model(**given)
    for wrong in (masked(rows), [masked(row) for row in rows]):
        with pytest.raises(TypeError, match=rf"^{name} must be an array without a mask.*filled"):
            model(**given | {name: wrong})


def test_reports_and_generation_name_it():
    with pytest.raises(TypeError, match=r"^qk: .*got MaskedArray"):
        rc.lsh_report(masked(heads))
    model = rc.ReformerModelWithLMHead(small_config())
    with pytest.raises(TypeError, match=r"^input_ids must be an array without a mask"):
        model.generate(masked(np.ones((1, 4), int)), max_new_tokens=1)
    with pytest.raises(TypeError, match=r"^attention_mask must be an array without a mask"):
        model.generate(
            np.ones((1, 4), int), attention_mask=masked(np.ones((1, 4))), max_new_tokens=1
        )
