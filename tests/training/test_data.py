"""Text files to tokens, and tokens to windows that depend on (seed, step) alone."""

import io
import math

import numpy as np
import pytest

from reformer_c.text.byte_tokenizer import ByteTokenizer
from reformer_c.training.data import Sequences, Windows
from reformer_c.training.texts import (
    read_split,
    read_text,
    read_texts,
    read_tokens,
    split_tokens,
)

TOKENS = np.arange(100) % 37


def test_files_and_folders_are_read_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "b.txt").write_bytes(b"two")
    (tmp_path / "a.txt").write_bytes(b"one")
    (tmp_path / "sub" / "c.md").write_bytes(b"three")
    (tmp_path / "image.bin").write_bytes(b"\0\1\2")
    (tmp_path / ".hidden" / "d.txt").write_bytes(b"no")
    (tmp_path / ".e.txt").write_bytes(b"no")
    assert read_text(tmp_path) == b"one\ntwo\nthree"
    assert read_text([tmp_path / "b.txt", str(tmp_path / "a.txt")]) == b"two\none"


def test_a_file_named_by_itself_may_contain_anything(tmp_path):
    (tmp_path / "image.bin").write_bytes(b"\0\1\2")
    assert read_text(tmp_path / "image.bin") == b"\0\1\2"


def test_standard_input_is_read(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"typed")))
    assert read_text("-") == b"typed"


def test_a_missing_file_and_no_text_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        read_text(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match="must contain text"):
        read_text(tmp_path)


def test_token_arrays_are_mapped_and_texts_are_joined_or_kept_apart(tmp_path):
    np.save(tmp_path / "c.npy", TOKENS.astype(np.int32))
    (tmp_path / "a.txt").write_bytes(b"one")
    (tmp_path / "b.txt").write_bytes(b"")
    (tmp_path / "d.txt").write_bytes(b"four")
    array, text = read_tokens(tmp_path)
    assert isinstance(array, np.memmap)
    assert np.array_equal(array, TOKENS)
    assert text.dtype == np.uint16
    assert (text - 2).astype(np.uint8).tobytes() == b"one\nfour"
    assert [len(part) for part in read_tokens(tmp_path, whole_files=True)] == [100, 3, 4]
    assert len(read_tokens([tmp_path / "c.npy"])) == 1


def test_the_end_of_each_file_is_held_out_on_its_own(tmp_path):
    np.save(tmp_path / "c.npy", TOKENS)
    texts = {"a": b"0123456789" * 2, "b": b"x", "d": b"abcdefghij"}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_bytes(text)
    assert read_texts(tmp_path / "a.txt") == [texts["a"]]
    train, held_out = read_split(tmp_path, 0.2)
    decode = ByteTokenizer().decode
    assert np.array_equal(train[0], TOKENS[:80])
    assert [decode(part) for part in train[1:]] == ["0123456789012345\nx\nabcdefgh"]
    assert np.array_equal(held_out[0], TOKENS[80:])
    assert [decode(part) for part in held_out[1:]] == ["6789", "ij"]
    train, same = read_split(tmp_path, 0.2, whole_files=True)
    assert [decode(part) for part in train[1:]] == ["0123456789012345", "x", "abcdefgh"]
    assert all(map(np.array_equal, same, held_out))
    whole, none = read_split(tmp_path, 0.0)
    assert none == []
    assert all(map(np.array_equal, whole, read_tokens(tmp_path)))


def test_wrong_token_arrays_are_named(tmp_path):
    np.save(tmp_path / "real.npy", np.zeros(5))
    np.save(tmp_path / "square.npy", np.zeros((5, 5), int))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "empty.npy", np.zeros(0, int))
    for name in ("real", "square"):
        with pytest.raises(TypeError, match=rf"{name}\.npy must be a 1-d array of integers"):
            read_tokens(tmp_path / f"{name}.npy")
    with pytest.raises(ValueError, match=r"objects\.npy must be an array"):
        read_tokens(tmp_path / "objects.npy")
    with pytest.raises(ValueError, match=r"must contain tokens, got none in .*empty\.npy"):
        read_tokens(iter([tmp_path / "empty.npy"]))


@pytest.mark.parametrize(("share", "held"), [(0.0, 0), (0.1, 10), (0.256, 26), (0.99, 99)])
def test_the_held_out_part_is_the_end(share, held):
    train, held_out = split_tokens(TOKENS, share)
    assert len(held_out) == held
    assert np.array_equal(np.concatenate([train, held_out]), TOKENS)


@pytest.mark.parametrize("share", [-0.1, 1.0, np.nan])
def test_a_bad_share_is_named(share):
    with pytest.raises(ValueError, match="held_out"):
        split_tokens(TOKENS, share)


def test_random_windows_are_pieces_of_the_text_and_depend_on_seed_and_step_alone():
    text = np.arange(1000)
    windows = Windows(text, 50, batch=4, seed=3)
    batches = [windows.batch(step) for step in range(20)]
    for batch in batches:
        assert batch.shape == (4, 50)
        assert batch.dtype == np.int64
        assert np.array_equal(batch, batch[:, :1] + np.arange(50))
    again = Windows(text, 50, batch=4, seed=3)
    assert np.array_equal(again.batch(17), batches[17])
    assert not np.array_equal(batches[0], batches[1])
    assert not np.array_equal(Windows(text, 50, batch=4, seed=4).batch(0), batches[0])


def test_random_windows_reach_both_ends():
    windows = Windows(np.arange(12), 10, seed=0)
    starts = {int(windows.batch(step)[0, 0]) for step in range(100)}
    assert starts == {0, 1, 2}


def test_sequential_windows_follow_each_other_and_come_round():
    windows = Windows(np.arange(35), 10, batch=2, order="sequential")
    assert windows.batch(0)[:, 0].tolist() == [0, 10]
    assert windows.batch(1)[:, 0].tolist() == [20, 0]
    assert windows.batch(2)[:, 0].tolist() == [10, 20]


def test_a_window_may_be_the_whole_text():
    assert np.array_equal(Windows(TOKENS, 100).batch(5)[0], TOKENS)


@pytest.mark.parametrize("order", ["random", "sequential"])
def test_texts_shorter_than_a_window_are_left_out_and_counted(order):
    data = Windows([np.full(9, 1), np.full(3, 2), np.full(4, 3)], length=4, order=order)
    assert data.left_out == 1
    assert {int(x) for step in range(50) for x in data.batch(step).flat} == {1, 3}


@pytest.mark.parametrize("order", ["random", "sequential"])
def test_windows_never_reach_from_one_array_into_the_next(order):
    parts = [np.arange(12), np.arange(100, 103), np.arange(200, 225), np.arange(0)]
    windows = Windows(parts, 10, batch=3, order=order)
    assert len(windows) == 3
    seen = set()
    for step in range(60):
        for row in windows.batch(step):
            assert np.array_equal(row, row[0] + np.arange(10))
            seen.add(int(row[0]))
    everywhere = {0, 1, 2} | set(range(200, 216))
    assert seen == (everywhere if order == "random" else {0, 200, 210})


@pytest.mark.parametrize("make", [Windows, Sequences])
@pytest.mark.parametrize("order", ["random", "sequential"])
def test_positions_start_at_random_ones_that_depend_on_seed_and_step_alone(make, order):
    shape = {"batch": 3} if make is Windows else {}
    plain = make([TOKENS], 20, order=order, seed=5, **shape)
    data = make([TOKENS], 20, order=order, seed=5, offset=4, **shape)
    starts = set()
    for step in range(60):
        batch = data.batch(step)
        assert np.array_equal(batch["input_ids"], plain.batch(step))
        assert batch["labels"] is batch["input_ids"]
        positions = batch["position_ids"]
        assert np.array_equal(positions, positions[:, :1] + np.arange(20))
        starts |= set(positions[:, 0].tolist())
    assert starts == {0, 1, 2, 3, 4}
    again = make([TOKENS], 20, order=order, seed=5, offset=4, **shape)
    assert np.array_equal(again.batch(7)["position_ids"], data.batch(7)["position_ids"])
    assert data.describe() == plain.describe() | {"offset": 4}


def test_whole_texts_come_in_order_or_all_once_in_a_random_one():
    parts = [np.arange(n) for n in (3, 7, 5, 2)]
    texts = Sequences(parts, order="sequential")
    assert [texts.batch(i).shape for i in range(5)] == [(1, 3), (1, 7), (1, 5), (1, 2), (1, 3)]
    assert texts.batch(1).dtype == np.int64
    texts = Sequences(parts, seed=2)
    for epoch in range(5):
        lengths = [texts.batch(4 * epoch + i).shape[1] for i in range(4)]
        assert sorted(lengths) == [2, 3, 5, 7]
    assert np.array_equal(Sequences(parts, seed=2).batch(17), texts.batch(17))
    assert texts.length == 7


def test_a_text_that_is_too_long_is_read_in_a_window():
    parts = [np.arange(30), np.arange(4)]
    texts = Sequences(parts, 10)
    starts = set()
    for step in range(60):
        batch = texts.batch(step)[0]
        assert len(batch) in (4, 10)
        assert np.array_equal(batch, batch[0] + np.arange(len(batch)))
        starts.add(int(batch[0]))
    assert len(starts) > 10
    assert np.array_equal(Sequences(parts, 10, order="sequential").batch(0)[0], np.arange(10))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"tokens": [np.arange(5), np.arange(1)]}, r"tokens\[1\] must have at least 2"),
        ({"length": 0}, "length"),
        ({"length": 1}, "length"),
        ({"order": "shuffled"}, "order"),
    ],
)
def test_bad_arguments_of_sequences_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        Sequences(**({"tokens": [np.arange(5)]} | arguments))


def test_a_description_tells_texts_and_orders_apart():
    base = Windows(TOKENS, 10).describe()
    other = TOKENS.copy()
    other[50] += 1
    assert Windows(TOKENS.copy(), 10).describe() == base
    assert Windows(other, 10).describe() != base
    assert Windows([TOKENS[:50], TOKENS[50:]], 10).describe() != base
    assert Windows(TOKENS, 10, order="sequential").describe() != base
    assert Windows(TOKENS, 10, seed=1).describe() != base


def test_a_mask_of_tokens_is_not_dropped():
    masked = np.ma.masked_equal(TOKENS, 3)
    for make in (
        lambda: Windows(masked, 10),
        lambda: Sequences([TOKENS, masked]),
        lambda: split_tokens(masked, 0.1),
    ):
        with pytest.raises(TypeError, match=r"^tokens(\[1\])? must be an array without a mask"):
            make()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_tokens_may_be_of_any_integer_dtype_and_read_only(dtype, tmp_path):
    np.save(tmp_path / "tokens.npy", TOKENS.astype(dtype))
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    assert np.array_equal(Windows(mapped, 10).batch(0), Windows(TOKENS, 10).batch(0))


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        ({"tokens": TOKENS.astype(float)}, TypeError, "tokens"),
        ({"tokens": TOKENS.reshape(10, 10)}, TypeError, "tokens"),
        ({"length": 0}, ValueError, "length"),
        ({"length": 2.5}, TypeError, "length"),
        ({"length": 101}, ValueError, "length.* 100.* 101"),
        ({"batch": 0}, ValueError, "batch"),
        ({"order": "shuffled"}, ValueError, "order"),
        ({"seed": -1}, ValueError, "seed"),
        ({"offset": -1}, ValueError, "offset"),
        ({"offset": 0.5}, TypeError, "offset"),
        ({"bytes_per_token": 0}, ValueError, "bytes_per_token"),
        ({"bytes_per_token": math.inf}, ValueError, "bytes_per_token"),
        ({"bytes_per_token": "2"}, TypeError, "bytes_per_token"),
        ({"lenght": 3}, TypeError, "did you mean length?"),
    ],
)
def test_bad_arguments_are_named(arguments, error, word):
    with pytest.raises(error, match=word):
        Windows(**({"tokens": TOKENS, "length": 10} | arguments))
