"""NumPy's masked arrays: their mask is never dropped in silence, whatever they are passed as."""

import numpy as np
import pytest
from op_cases import RIGHT, ones
from small_models import small_config

import reformer_c as rc
from reformer_c import ops


def masked(x):
    return np.ma.masked_array(x, np.zeros(np.shape(x), bool))


heads = np.ones((1, 2, 6, 4))
LSH = dict(num_hashes=1, num_buckets=4, chunk_length=2)
MASK = {"attention_mask": np.ones((2, 8))}
# op: optional arrays, in addition to its valid arguments
OPTIONAL = {
    "linear": {"out": ones(2, 5, 3)},
    "dropout": {"out": ones(2, 5)},
    "full_attention": MASK,
    "local_attention": MASK,
    "lsh_hash": MASK,
    "lsh_attention": dict(MASK, buckets=np.zeros((2, 3, 1, 8), int), rng=None),
}
GIVEN = {op: arguments | OPTIONAL.get(op, {}) for op, arguments in RIGHT.items()}
# arrays that are updated in place have messages of their own
OTHER_WORDS = {"adamw_step", "adafactor_step", "add_scaled", "add_rounded"}


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (op, name)
        for op, given in GIVEN.items()
        for name, value in given.items()
        if isinstance(value, np.ndarray) and op not in OTHER_WORDS
    ],
)
def test_every_op_names_the_masked_argument(op, name):
    arguments = GIVEN[op]

    def call(**changes):
        return getattr(ops, op)(**arguments | changes)

    call()
    with pytest.raises(TypeError, match=rf"^{name} must be an array without a mask.*filled.*mask"):
        call(**{name: masked(arguments[name])})
    if name != "out":
        with pytest.raises(TypeError, match=rf"^{name} must be an array without a mask"):
            call(**{name: [masked(row) for row in arguments[name]]})
        ragged = [[1.0, 2.0], [3.0]]
        with pytest.raises(ValueError, match=rf"^{name} must have rows of one length"):
            call(**{name: ragged})


def test_backward_passes_and_optimizers_name_it_too():
    x = np.ones((6, 4))
    y, saved = ops.linear_forward(x, np.ones((3, 4)))
    with pytest.raises(TypeError, match=r"^dout must be an array without a mask"):
        ops.linear_backward(masked(y), saved)
    out, saved = ops.lsh_attention_forward(heads, heads, **LSH)
    with pytest.raises(TypeError, match=r"^dout must be an array without a mask"):
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
    with pytest.raises(TypeError, match=r"^qk must be .*got MaskedArray"):
        rc.lsh_report(masked(heads))
    for arguments in ((masked(heads),), (heads, masked(heads))):
        with pytest.raises(TypeError, match=r"^[qk] must be .*got MaskedArray"):
            rc.tune_lsh(*arguments)
    model = rc.ReformerModelWithLMHead(small_config())
    with pytest.raises(TypeError, match=r"^input_ids must be an array without a mask"):
        model.generate(masked(np.ones((1, 4), int)), max_new_tokens=1)
    with pytest.raises(TypeError, match=r"^attention_mask must be an array without a mask"):
        model.generate(
            np.ones((1, 4), int), attention_mask=masked(np.ones((1, 4))), max_new_tokens=1
        )
