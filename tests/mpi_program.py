"""The program that test_distributed.py runs under mpiexec: it trains and writes the results."""

import sys

import numpy as np
from small_models import small_config

import reformer_c as rc
from reformer_c import distributed
from reformer_c.training.data import Windows


def make(seed, kind=rc.ReformerModelWithLMHead, **changes):
    config = small_config(attn_layers=["local", "lsh"], hash_seed=1, **changes)
    return kind(config, rng=seed, dtype=np.float64)


def text():
    return np.random.default_rng(0).integers(0, 13, 5000)


class Rows:
    """Micro-batches of several lengths; of the second step none has a label that counts, nor has
    the first batch of the third."""

    def __init__(self, processes):
        self.of_a_step = 2 * processes

    def batch(self, step):
        ids = text()[step : step + 5 + 7 * step % 23][None]
        none = step // self.of_a_step == 1 or step == 2 * self.of_a_step
        return {"input_ids": ids, "labels": np.full_like(ids, -100) if none else ids}


class Questions:
    """Micro-batches of which every third has no start in the text, and every other no end; in the
    second step none has an end."""

    def __init__(self, processes):
        self.of_a_step = 2 * processes

    def batch(self, step):
        ids = text()[20 * step : 20 * step + 40].reshape(2, 20)
        no_end = step % 2 == 0 or step // self.of_a_step == 1
        places = {
            "start_positions": np.array([20, 99] if step % 3 == 0 else [step, 3]),
            "end_positions": np.array([20, 20] if no_end else [5, 99]),
        }
        return {"input_ids": ids, **places}


def questions_model():
    return make(0, rc.ReformerForQuestionAnswering, is_decoder=False)


def main(out):
    distributed.share_threads()
    comm = distributed.MPI.COMM_WORLD
    # each begins with weights of its own
    model = distributed.DataParallel(make(comm.rank))
    data = distributed.Shard(Windows(text(), length=20, batch=2))
    optimizer = rc.AdamW(model.parameters, lr=1e-2)
    keeping = {"folder": out, "save_every": 2} if model.rank == 0 else {}
    trainer = rc.Trainer(model, data, optimizer, steps=4, **keeping)
    losses = [report.loss for report in trainer]

    # labels count on whichever process they are; one process has none
    ids = text()[: 2 * 20 * comm.size].reshape(comm.size, 2, 20)
    labels = ids.copy()
    labels[0, :, 5:] = -100
    labels[-1] = -100
    loss, gradients = model.loss_and_gradients(ids[comm.rank], labels=labels[comm.rank], rng=0)
    nothing = model.loss_and_gradients(ids[0], labels=labels[-1], rng=0)[0]

    dropping = distributed.DataParallel(make(0, hidden_dropout_prob=0.5))
    again = [dropping.loss_and_gradients(ids[0], labels=ids[0], rng=3)[0] for _ in range(2)]
    own = make(0, hidden_dropout_prob=0.5).loss_and_gradients(ids[0], labels=ids[0], rng=3)[0]

    # another folder's state, broadcast by rank 0
    late = distributed.DataParallel(make(7))
    state = rc.AdamW(late.parameters, lr=1e-2)
    if late.rank == 0:
        rc.Trainer(late, data, state).resume(out)
    late.synchronise(state)

    rows = distributed.DataParallel(make(0))
    for name, array in rows.parameters.items():
        array[...] = model.parameters[name]
    optimizer = rc.AdamW(rows.parameters, lr=1e-2)
    shard = distributed.Shard(Rows(comm.size))
    reports = list(rc.Trainer(rows, shard, optimizer, steps=3, accumulate=2))

    questions = distributed.DataParallel(questions_model())
    optimizer = rc.AdamW(questions.parameters, lr=1e-2)
    shard = distributed.Shard(Questions(comm.size))
    answered = list(rc.Trainer(questions, shard, optimizer, steps=3, accumulate=2))

    # each has a text of its own length, which would choose its own number of buckets
    undecided = distributed.DataParallel(make(0, num_buckets=None))
    own_text = text()[: 10 + 15 * comm.rank][None]
    undecided.loss_and_gradients(own_text, labels=own_text, rng=0)
    later = distributed.DataParallel(make(0, num_buckets=8 if comm.rank == 0 else None))

    try:
        distributed.broadcast({"a": np.zeros(3 + comm.rank)})
        error = ""
    except ValueError as caught:
        error = str(caught)

    arrays = {
        "losses": losses, "loss": loss, "nothing": nothing, "again": again, "own": own,
        "error": error, "rows.loss": [report.loss for report in reports],
        "buckets": [undecided.config.num_buckets, later.config.num_buckets],
        "rows.targets": [report.targets for report in reports],
        "questions.loss": [report.loss for report in answered],
        "questions.targets": [report.targets for report in answered],
    }  # fmt: skip
    kinds = {
        "weight": model.parameters, "late": late.parameters, "gradient": gradients,
        "state": state.state_dict(), "rows": rows.parameters,
        "questions": questions.parameters,
    }  # fmt: skip
    for kind, found in kinds.items():
        arrays |= {f"{kind}.{name}": array for name, array in found.items()}
    np.savez(f"{out}/rank{comm.rank}.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
