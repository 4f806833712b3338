"""Pairs of texts: files, and batches that depend on (seed, step) alone."""

import itertools
import json

import numpy as np
import pytest
from small_models import small_config
from tolerances import assert_close

import reformer_c as rc
from reformer_c.text.byte_tokenizer import ByteTokenizer
from reformer_c.training.evaluation import evaluate_pairs
from reformer_c.training.pairs import (
    Pairs,
    TextPair,
    encode_pairs,
    encode_source,
    end_token_of,
    read_pairs,
)

WORDS = [TextPair("Haus", "house"), TextPair("", "empty"), TextPair("\u00e4\u2028b", "a\u2029b")]


def write(folder, name, lines, end="\n"):
    path = folder / name
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


# ---- files ----


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_form_of_a_file_gives_the_same_pairs(tmp_path, end):
    aligned = [
        write(tmp_path, "words.de", [pair.source for pair in WORDS], end),
        write(tmp_path, "words.en", [pair.target for pair in WORDS], end),
    ]
    table = write(tmp_path, "words.tsv", ["\t".join(pair) for pair in WORDS], end)
    lines = write(tmp_path, "words.JSONL", [json.dumps(pair._asdict()) for pair in WORDS], end)
    assert read_pairs(aligned) == read_pairs(table) == read_pairs(str(lines)) == WORDS
    assert read_pairs([table, *aligned, lines]) == WORDS * 3


def test_a_last_line_without_a_newline_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"\xef\xbb\xbfa\tb\nc\td")
    assert read_pairs(path) == [TextPair("a", "b"), TextPair("c", "d")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.tsv", b"a\tb\nc d\n", r"a\.tsv:2: must be a source, a tab and a target, got 0 tabs"),
        ("a.tsv", b"a\tb\tc\n", r"a\.tsv:1: must be .* got 2 tabs"),
        ("a.tsv", b"", r"a\.tsv: must have at least one pair, got none"),
        ("a.tsv", b"a\tb\nc\t\xff\n", r"a\.tsv:2: must be UTF-8"),
        (
            "a.jsonl",
            b'{"source": "a", "target": "b"}\n{"source": "a"\n',
            r"a\.jsonl:2: must be JSON",
        ),
        ("a.jsonl", b'{"source": "a", "target": 3}\n', r"a\.jsonl:1: must be an object with"),
        ("a.jsonl", b'["a", "b"]\n', r"a\.jsonl:1: must be an object with"),
        ("a.de", b"a\n", r"must be \.tsv, \.jsonl, or two aligned files, got '.*a\.de' without"),
    ],
)
def test_a_fault_of_a_file_is_named_with_its_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_pairs(tmp_path / name)


def test_files_that_are_not_aligned_are_refused(tmp_path):
    source = write(tmp_path, "a.de", ["a", "b", "c"])
    target = write(tmp_path, "a.en", ["a", "b"])
    table = write(tmp_path, "a.tsv", ["a\tb"])
    words = r"a\.en:3: must be a line, as .*a\.de has 3 lines, got the end"
    with pytest.raises(ValueError, match=words):
        read_pairs([source, target])
    with pytest.raises(ValueError, match=words):
        read_pairs([target, source])
    with pytest.raises(ValueError, match=r"got '.*a\.de' without its target"):
        read_pairs([source, table])
    with pytest.raises(ValueError, match="files must be at least one file"):
        read_pairs([])
    with pytest.raises(FileNotFoundError):
        read_pairs(tmp_path / "b.tsv")


# ---- token ids ----


def test_each_side_ends_with_the_end_token():
    tokenizer = ByteTokenizer()
    sources, targets = encode_pairs(WORDS, tokenizer)
    assert [ids[-1] for ids in sources + targets] == [end_token_of(tokenizer)] * 6
    assert [tokenizer.decode(ids) for ids in sources] == [pair.source for pair in WORDS]
    assert [tokenizer.decode(ids) for ids in targets] == [pair.target for pair in WORDS]
    assert encode_source("", tokenizer).tolist() == [1]


def test_a_tokenizer_without_an_end_token_is_refused():
    class Endless(ByteTokenizer.__base__):
        eos_token_id = pad_token_id = None
        _ids = decode = None

    with pytest.raises(ValueError, match="tokenizer must have an end token"):
        end_token_of(Endless())


# ---- batches ----


def draw(count, seed=0):
    rng = np.random.default_rng(seed)
    sides = [[rng.integers(2, 13, rng.integers(1, 30)) for _ in range(count)] for _ in range(2)]
    return [[np.append(ids, 1) for ids in side] for side in sides]


def rows_of(batch):
    """The pairs of a batch, without padding."""
    for ids, mask, labels in zip(*batch.values()):
        n = mask.sum()
        assert mask[:n].all() and not ids[n:].any()
        m = (labels != -100).sum()
        assert (labels[m:] == -100).all()
        yield (*ids[:n],), (*labels[:m],)


@pytest.mark.parametrize("order", ["random", "sequential"])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 50])
def test_every_pass_has_every_pair_once(order, count):
    sources, targets = draw(count)
    pairs = Pairs(sources, targets, batch=8, order=order)
    expected = sorted(((*s,), (*t,)) for s, t in zip(sources, targets))
    assert pairs.num_batches == -(-count // 8)
    for number in range(2):
        steps = range(number * pairs.num_batches, (number + 1) * pairs.num_batches)
        batches = [pairs.batch(step) for step in steps]
        assert sorted(row for batch in batches for row in rows_of(batch)) == expected
        assert all(len(batch["labels"]) <= 8 for batch in batches)


def test_batches_are_of_similar_length():
    pairs = Pairs(*draw(1000), batch=10)
    spans = []
    for step in range(pairs.num_batches):
        lengths = [max(map(len, row)) for row in rows_of(pairs.batch(step))]
        spans.append((min(lengths), max(lengths)))
    ordered = sorted(spans)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ordered))
    assert spans != ordered
    shortest = Pairs(*draw(1000), batch=10, order="sequential")
    assert max(map(len, next(rows_of(shortest.batch(0))))) == ordered[0][0]


@pytest.mark.parametrize("order", ["random", "sequential"])
@pytest.mark.parametrize(("tokens", "most"), [(30, None), (64, None), (100, 3), (10**6, None)])
def test_batches_have_a_number_of_tokens(order, tokens, most):
    sources, targets = draw(200)
    pairs = Pairs(sources, targets, batch=most, batch_tokens=tokens, order=order)
    expected = sorted(((*s,), (*t,)) for s, t in zip(sources, targets))
    filled: list[list[int]] = [[]]
    for length in sorted(max(map(len, row)) for row in expected):
        if len(filled[-1]) == most or (len(filled[-1]) + 1) * length > tokens:
            filled.append([])
        filled[-1].append(length)
    for number in range(2):
        steps = range(number * pairs.num_batches, (number + 1) * pairs.num_batches)
        batches = [pairs.batch(step) for step in steps]
        assert sorted(row for batch in batches for row in rows_of(batch)) == expected
        found = [sorted(max(map(len, row)) for row in rows_of(batch)) for batch in batches]
        assert sorted(found) == sorted(filled)
        assert (found == filled) is (order == "sequential" or len(filled) == 1)
    assert all(len(lengths) * lengths[-1] <= tokens for lengths in filled)


def test_a_batch_depends_on_seed_and_step_alone():
    sides = draw(50)
    pairs, again = (Pairs(*sides, batch=8, seed=3) for _ in range(2))
    forward = [pairs.batch(step) for step in range(20)]
    for step in reversed(range(20)):
        for name, array in again.batch(step).items():
            np.testing.assert_array_equal(array, forward[step][name])
    other = Pairs(*sides, batch=8, seed=4)
    assert any(
        not np.array_equal(other.batch(step)["labels"], forward[step]["labels"])
        for step in range(7)
    )
    assert not all(
        np.array_equal(forward[step]["labels"], forward[step + 7]["labels"]) for step in range(7)
    )


def test_long_pairs_are_left_out_and_counted():
    sources, targets = [[2, 1], [2] * 9, [3, 1]], [[4, 1], [4, 1], [4] * 7]
    pairs = Pairs(sources, targets, length=7)
    assert (len(pairs), pairs.left_out, pairs.length) == (2, 1, 7)
    with pytest.raises(
        ValueError, match="length must be at least 2, that of the shortest pair, got 1"
    ):
        Pairs(sources, targets, length=1)


@pytest.mark.parametrize(
    ("sides", "options", "words"),
    [
        (([[1]], [[1], [2]]), {}, "targets must have 1 rows, as sources has, got 2"),
        (([], []), {}, "sources must have at least one row, got none"),
        (
            ([[1], np.zeros(0, int)], [[1], [2]]),
            {},
            r"sources\[1\] must have at least 1 token, got 0",
        ),
        (([[1]], [[1.5]]), {}, r"targets\[0\] must be a 1-d array of integers"),
        (([[1]], [[1]]), {"batch": 0}, "batch must be "),
        (([[1]], [[1]]), {"batch_tokens": 0}, "batch_tokens must be "),
        (
            ([[1]], [[5, 6, 1]]),
            {"batch_tokens": 2},
            "batch_tokens must be at least 3, the tokens of the longest pair, got 2",
        ),
        (([[1]], [[1]]), {"order": "sorted"}, "order must be "),
        (([[1]], [[1]]), {"length": 0}, "length must be "),
    ],
)
def test_bad_arguments_are_named(sides, options, words):
    with pytest.raises((TypeError, ValueError), match=f"^{words}"):
        Pairs(*sides, **options)


# ---- training ----


def small_model(**changes):
    config = small_config(is_decoder=False, eos_token_id=1, **changes)
    return rc.ReformerEncoderDecoder(config, rng=0, dtype=np.float64)


def test_a_run_resumes_bit_for_bit(tmp_path):
    pytest.importorskip("safetensors")
    sides = draw(20)

    def trainer(steps):
        model = small_model(label_smoothing=0.1)
        data = Pairs(*sides, batch=8)
        return rc.Trainer(model, data, rc.AdamW(model.parameters, lr=1e-2), steps=steps)

    whole = trainer(6)
    losses = [report.loss for report in whole]
    first = trainer(4)
    list(first)
    first.save(tmp_path)
    resumed = trainer(6)
    resumed.resume(tmp_path)
    assert [report.loss for report in resumed] == losses[4:]
    for name, array in whole.model.parameters.items():
        np.testing.assert_array_equal(resumed.model.parameters[name], array)
    other = rc.Trainer(
        first.model, Pairs(*draw(20, 1), batch=8), rc.AdamW(first.model.parameters, lr=1e-2)
    )
    with pytest.raises(ValueError, match=r"data\.checksum is"):
        other.resume(tmp_path)


def test_the_loss_on_pairs_is_that_of_all_their_targets():
    sources, targets = draw(9)
    # a row of one chunk does not see the padding of the others
    model = small_model(attn_layers=["local"], local_attn_chunk_length=64)
    found = evaluate_pairs(model, Pairs(sources, targets, batch=4, bytes_per_token=2.0))
    losses = [model.loss([s], labels=[t], rng=0) for s, t in zip(sources, targets)]
    counts = [len(t) for t in targets]
    assert found.tokens == sum(counts)
    assert_close(found.loss, np.average(losses, weights=counts), "model_forward")
    assert_close(found.bits_per_byte, found.loss / np.log(2) / 2, "model_forward")
