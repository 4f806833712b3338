"""A model that many Python threads call at once: the bits of one."""

import numpy as np
from many_threads import at_once
from small_models import DROPOUT, small_config

import reformer_c as rc


def test_a_model_called_by_eight_threads_at_once():
    model = rc.ReformerModelWithLMHead(small_config(**DROPOUT), rng=0)
    ids = np.random.default_rng(0).integers(0, 13, (2, 42))

    def gradients():
        loss, found = model.loss_and_gradients(ids, labels=ids, rng=1)
        return loss, *found.values()

    def trained():
        own = rc.ReformerModelWithLMHead(small_config(), rng=0)
        rc.AdamW(own.parameters, lr=0.1).step(own.loss_and_gradients(ids, labels=ids, rng=1)[1])
        return tuple(own.parameters.values())

    calls = [
        lambda: (model(ids, rng=1).logits,),
        gradients,
        trained,
        lambda: (model.generate(ids[:, :9], max_new_tokens=9, do_sample=True, rng=1),),
        lambda: (model.generate(ids[:, :9], max_new_tokens=9, num_beams=3, rng=1),),
        lambda: (model.generate(ids[:, :9], max_new_tokens=9, weights="int8", rng=1),),
    ]
    expected = {}
    for precision in ("highest", "medium"):
        with rc.matmul_precision(precision):
            expected[precision] = [[np.asarray(x).tobytes() for x in call()] for call in calls]

    def work(i):
        for step in range(len(calls)):
            one = (i + step) % len(calls)
            rc.set_matmul_precision(("high", "medium", "highest")[step % 3])
            rc.set_num_threads(1 + (i + step) % 3)
            precision = ("highest", "medium")[i % 2]
            with rc.matmul_precision(precision):
                found = [np.asarray(x).tobytes() for x in calls[one]()]
            assert found == expected[precision][one]

    before = rc.get_num_threads(), rc.get_matmul_precision()
    try:
        at_once(work)
    finally:
        rc.set_num_threads(before[0])
        rc.set_matmul_precision(before[1])
