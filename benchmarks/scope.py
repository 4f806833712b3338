"""Fixed chunks compared with whole buckets: quality and speed of a small model.

Both train on the same data. attention_scope="chunk" is Hugging Face's computation, "bucket" the
paper's.
"""

import argparse
import time

import numpy as np

import reformer_c as rc
from reformer_c.models.presets import preset_config
from reformer_c.tools.bench import describe_machine, print_machine
from reformer_c.tools.demo import encode, python_text
from reformer_c.training.data import Windows
from reformer_c.training.evaluation import evaluate
from reformer_c.training.texts import split_tokens


def changed_share(model, ids):
    """The share of outputs of the first half that depend on the second half."""
    edited, half = ids.copy(), ids.shape[1] // 2
    edited[:, half:] = edited[:, half:][:, ::-1]
    one, two = (model(x, rng=0).logits[:, :half] for x in (ids, edited))
    return float((np.abs(one - two).max(axis=-1) > 1e-3).mean())


def decoding_error(model, ids, prompt):
    """Mean and largest difference between next-token probabilities of decoding and of forward
    passes over the text so far."""
    found = {True: [], False: []}
    for use_cache, seen in found.items():

        def force(text, z, seen=seen):
            seen.append(np.exp(z - z.max()) / np.exp(z - z.max()).sum())
            return np.eye(len(z))[ids[0, len(text)]]

        model.generate(
            ids[:, :prompt], max_new_tokens=ids.shape[1] - prompt, logits_processor=force, rng=0,
            use_cache=use_cache, eos_token_id=None,
        )  # fmt: skip
    distance = np.abs(np.array(found[True]) - np.array(found[False])).sum(axis=1) / 2
    return float(distance.mean()), float(distance.max())


def run(scope, train, held_out, options):
    config = preset_config("tiny", options.length, num_hashes=options.hashes)
    config.attention_scope = scope
    model = rc.ReformerModelWithLMHead(config, rng=0)
    optimizer = rc.AdamW(model.parameters, lr=2e-3)
    trainer = rc.Trainer(
        model, Windows(train, options.length, batch=1, seed=0), optimizer, steps=options.steps,
        schedule=rc.schedules.cosine(options.steps, warmup=options.steps // 10, floor=0.1),
    )  # fmt: skip
    start = time.perf_counter()
    for _ in trainer:
        pass
    seconds = time.perf_counter() - start
    quality = evaluate(model, held_out, options.length)
    ids = held_out[None, : options.length].astype(np.int64)
    prompt = ids.shape[1] - 64
    stream = model.stream(ids[:, :prompt], max_new_tokens=64, rng=0)
    next(stream)
    begin = time.perf_counter()
    count = sum(1 for _ in stream)
    written = count / (time.perf_counter() - begin)
    return (
        f"{quality.bits_per_byte:10.3f} {options.steps * options.length / seconds:12,.0f} "
        f"{written:12,.0f} {changed_share(model, ids):14.0%} "
        + "{:11.1e} {:9.1e}".format(*decoding_error(model, ids, prompt))
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--hashes", type=int, default=2)
    options = parser.parse_args()
    text, source = python_text()
    train, held_out = split_tokens(encode(text), 0.1)
    held_out = held_out[: 16 * options.length]
    print_machine(describe_machine())
    print(f"{source}; {options.steps} steps of {options.length:,} bytes, {options.hashes} rounds")
    print(f"{'':8} {'bits/byte':>10} {'train, tok/s':>12} {'write, tok/s':>12} "
          f"{'past changed':>14} {'decoding: mean':>14} {'max':>6}")  # fmt: skip
    for scope in ("chunk", "bucket"):
        print(f"{scope:8} {run(scope, train, held_out, options)}", flush=True)


if __name__ == "__main__":
    main()
