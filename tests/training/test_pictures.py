"""Pictures: read from files, folders and arrays as bytes in raster order, and written."""

import sys

import numpy as np
import pytest
from tolerances import assert_close

import reformer_c as rc
from reformer_c.training import pictures as module
from reformer_c.training.data import Windows
from reformer_c.training.evaluation import evaluate
from reformer_c.training.pictures import (
    bits_per_dim,
    read_pictures,
    split_pictures,
    write_pictures,
)

Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")


def pixels(n, height=4, width=6, channels=3):
    shape = (n, height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save(file, picture):
    Image.fromarray(picture.squeeze()).save(file)


def test_files_folders_and_arrays_are_read_in_order(tmp_path):
    expected = pixels(6)
    (tmp_path / "sub").mkdir()
    save(tmp_path / "b.png", expected[0])
    np.save(tmp_path / "c.npy", expected[1:4])
    save(tmp_path / "sub" / "a.bmp", expected[4])
    save(tmp_path / ".hidden.png", expected[5])
    found = read_pictures(tmp_path)
    assert np.array_equal(found, expected[:5])
    assert isinstance(found[1], np.memmap)
    several = read_pictures([tmp_path / "sub", str(tmp_path / "b.png")], size=(4, 6))
    assert np.array_equal(several, expected[[4, 0]])


def test_a_sequence_is_the_picture_in_raster_order(tmp_path):
    (picture,) = expected = pixels(1)
    save(tmp_path / "a.png", picture)
    (found,) = (read.ravel() for read in read_pictures(tmp_path))
    order = [picture[y, x, c] for y in range(4) for x in range(6) for c in range(3)]
    assert np.array_equal(found, order)
    assert np.array_equal(Windows([found], expected.size).batch(0)[0], order)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_all_modes_are_converted(mode, channels, tmp_path):
    picture = Image.fromarray(pixels(1)[0]).convert(mode)
    file = tmp_path / ("a.png" if mode not in ("CMYK", "YCbCr") else "a.tif")
    picture.save(file)
    (found,) = read_pictures(file, channels=channels)
    expected = np.asarray(Image.open(file).convert("L" if channels == 1 else "RGB"))
    assert np.array_equal(found, expected.reshape(4, 6, channels))


def test_grey_arrays_need_no_axis_of_channels(tmp_path):
    expected = pixels(3, channels=1)
    np.save(tmp_path / "a.npy", expected[..., 0])
    np.save(tmp_path / "b.npy", expected)
    assert np.array_equal(read_pictures(tmp_path, channels=1), np.tile(expected, (2, 1, 1, 1)))


@pytest.mark.parametrize("name", ["a.txt", "a.png", "a.npy"])
@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_a_file_that_is_no_picture_is_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} must be (a picture|an array of pictures): "):
        read_pictures(tmp_path)


def test_a_damaged_picture_is_named(tmp_path):
    save(tmp_path / "a.png", pixels(1, 64, 64)[0])
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.png must be a picture: "):
        read_pictures(tmp_path)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_than_8_bits_per_channel_are_refused(dtype, tmp_path):
    Image.fromarray(np.zeros((4, 6), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif must have 8 bits per channel, got"):
        read_pictures(tmp_path)


def test_a_picture_of_another_size_is_named(tmp_path):
    save(tmp_path / "a.png", pixels(1)[0])
    save(tmp_path / "b.png", pixels(1, 6, 4)[0])
    with pytest.raises(ValueError, match=r"b\.png must have 6 x 4 pixels, as .*a\.png, got 4 x 6"):
        read_pictures(tmp_path)
    with pytest.raises(ValueError, match=r"a\.png must have 8 x 8 pixels, got 6 x 4"):
        read_pictures(tmp_path, size=(8, 8))


@pytest.mark.parametrize(
    ("shape", "dtype", "channels"),
    [((2, 4, 6, 3), float, 3), ((2, 4, 6), np.uint8, 3), ((2, 4, 6, 3), np.uint8, 1),
     ((4, 6), np.uint8, 1)],
)  # fmt: skip
def test_a_wrong_array_is_named(shape, dtype, channels, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(shape, dtype))
    with pytest.raises(TypeError, match=rf"a\.npy must be uint8 pictures .*, {channels}\), got "):
        read_pictures(tmp_path, channels=channels)


def test_no_pictures_and_missing_ones_are_named(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path.name} must contain pictures, got none"):
        read_pictures(tmp_path)
    np.save(tmp_path / "a.npy", pixels(0))
    with pytest.raises(ValueError, match=r"a\.npy must contain pictures, got none"):
        read_pictures(tmp_path / "a.npy")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        read_pictures(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="channels must be 3 or 1, got 4"):
        read_pictures(tmp_path, channels=4)


def test_the_missing_library_is_named(tmp_path, monkeypatch):
    save(tmp_path / "a.png", pixels(1)[0])
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'a picture needs the Pillow library.*"\.\[image\]"'):
        read_pictures(tmp_path)


@pytest.mark.parametrize("n", [1, 2, 10, 37])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.9])
def test_held_out_pictures_are_evenly_spaced(n, share):
    train, held_out = split_pictures(range(n), share)
    assert sorted([*train, *held_out]) == list(range(n))
    assert len(held_out) == round(n * share)
    gaps = np.diff(held_out)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_bits_per_dim_are_those_of_a_uniform_first_value_and_the_predicted_ones():
    config = rc.ReformerConfig(
        vocab_size=256, attn_layers=["local"], num_attention_heads=2, is_decoder=True,
        image_shape=[4, 6, 3],
    )  # fmt: skip
    model = rc.ReformerModelWithLMHead(config, rng=0, dtype=np.float64)
    sequence = pixels(1).ravel()
    result = evaluate(model, sequence, 72)
    z = model(sequence[None].astype(int)).logits[0]
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    nats = -log_p[np.arange(71), sequence[1:]].sum() + np.log(256)
    found = bits_per_dim(result.bits_per_byte, 72)
    assert_close(found, nats / np.log(2) / 72, "forward", "float64")
    assert bits_per_dim(8.0, 72) == 8.0


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_written_side_by_side(channels, tmp_path):
    expected = pixels(6, channels=channels)
    write_pictures(tmp_path / "a.png", expected.reshape(2, 3, 4, 6, channels))
    whole = read_pictures(tmp_path / "a.png", channels=channels)[0].copy()
    gap = module.GAP
    assert whole.shape == (2 * 4 + gap, 3 * 6 + 2 * gap, channels)
    for i, picture in enumerate(expected):
        y, x = (i // 3) * (4 + gap), (i % 3) * (6 + gap)
        assert np.array_equal(whole[y : y + 4, x : x + 6], picture)
        whole[y : y + 4, x : x + 6] = 255
    assert (whole == 255).all()


def test_pictures_are_part_of_the_public_module():
    assert rc.data.read_pictures is read_pictures
    assert rc.data.Windows is Windows
