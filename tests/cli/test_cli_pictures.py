"""Pictures on the command line: training, evaluation in bits per dim, completions."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from reformer_c.cli.main import main
from reformer_c.models.model import ReformerModelWithLMHead
from reformer_c.training.log import read_log
from reformer_c.training.pictures import GAP, read_pictures

Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
pytest.importorskip("safetensors", reason="models are saved")

HEIGHT, WIDTH = 6, 5
TRAIN = ["--task", "image", "--layers", "2", "--width", "32", "--threads", "1"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    drawn = np.random.default_rng(0).integers(0, 4, (10, HEIGHT, WIDTH, 3)).astype(np.uint8) * 80
    for i, picture in enumerate(drawn):
        Image.fromarray(picture).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("models") / "model")
    command = ["train", str(pictures), *TRAIN, "--steps", "4", "--batch", "2", "--save", folder]
    assert main(command) == 0
    return folder


def test_a_model_of_pictures_is_trained_evaluated_and_described(trained, pictures, capsys):
    config = json.loads(Path(trained, "config.json").read_text())
    assert config["image_shape"] == [HEIGHT, WIDTH, 3]
    assert (config["vocab_size"], config["max_position_embeddings"]) == (256, 90)
    assert config["axial_pos_shape"] == [HEIGHT, WIDTH, 3]
    assert main(["evaluate", trained, str(pictures)]) == 0
    printed = capsys.readouterr().out
    model = ReformerModelWithLMHead.from_pretrained(trained)
    sequences = [picture.reshape(1, -1).astype(int) for picture in read_pictures(pictures)]
    nats = sum(model.loss(ids, labels=ids, rng=0) for ids in sequences)
    bits = nats / 10 / math.log(2) * 89 / 90 + 8 / 90
    assert printed.startswith(f"{bits:.4f} bits per dim (10 pictures, ")
    assert main(["evaluate", trained, str(pictures), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["pictures"] == 10
    assert f"{values['bits_per_dim']:.4f}" == f"{bits:.4f}"
    assert main(["info", trained]) == 0
    assert f"pictures          {WIDTH} x {HEIGHT} pixels, 3 channels\n" in capsys.readouterr().out


def test_a_run_resumes_bit_for_bit_and_not_with_other_pictures(pictures, tmp_path, capsys):
    whole, twice = str(tmp_path / "whole"), str(tmp_path / "twice")
    command = ["train", str(pictures), *TRAIN, "--schedule", "constant"]
    assert main([*command, "--steps", "4", "--save", whole, "--log", str(tmp_path / "log")]) == 0
    assert "held out: " in (printed := capsys.readouterr().out)
    assert printed.splitlines()[-2].endswith(" bits per dim")
    assert len(read_log(tmp_path / "log")) == 4
    assert main([*command, "--steps", "2", "--save", twice]) == 0
    assert main([*command, "--steps", "4", "--save", twice, "--resume"]) == 0
    weights = [Path(folder, "model.safetensors").read_bytes() for folder in (whole, twice)]
    assert weights[0] == weights[1]
    capsys.readouterr()
    assert main([*command, "--steps", "5", "--save", twice, "--resume", "--channels", "1"]) == 1
    assert "image_shape is [6, 5, 1] here and [6, 5, 3]" in capsys.readouterr().err


def test_other_pictures_can_be_held_out(pictures, tmp_path, capsys):
    command = ["train", str(pictures), *TRAIN, "--steps", "2", "--evaluate-on"]
    assert main([*command, str(pictures / "3.png")]) == 0
    assert "900 tokens to train on, 90 held out" in capsys.readouterr().out
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "turned.png")
    assert main([*command, str(tmp_path / "turned.png")]) == 1
    assert "turned.png must have 5 x 6 pixels, got 6 x 5" in capsys.readouterr().err


def test_completions_keep_the_rows_at_the_top_and_are_repeatable(trained, pictures, tmp_path):
    files = [str(pictures / "1.png"), str(pictures / "8.png")]
    originals = read_pictures(files)
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        output = tmp_path / f"{name}.png"
        command = ["complete", trained, *files, "--keep", "0.3", "--samples", "3"]
        assert main([*command, "--seed", str(seed), "--output", str(output)]) == 0
        (whole,) = read_pictures(output)
        found.append(whole)
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert found[0].shape == (2 * HEIGHT + GAP, 5 * WIDTH + 4 * GAP, 3)
    for line, picture in enumerate(originals):
        row = found[0][line * (HEIGHT + GAP) :][:HEIGHT]
        first, *samples, last = (row[:, i * (WIDTH + GAP) :][:, :WIDTH] for i in range(5))
        assert np.array_equal(last, picture)
        for kept in (first, *samples):
            assert np.array_equal(kept[:2], picture[:2])
        assert (first[2:] == 128).all()
        assert not np.array_equal(samples[0], samples[1])


def test_a_picture_is_completed_as_if_it_were_alone(trained, pictures, tmp_path):
    found = []
    for name, files in (("both", ["2.png", "5.png"]), ("alone", ["5.png"])):
        output = str(tmp_path / f"{name}.png")
        command = ["complete", trained, *(str(pictures / file) for file in files)]
        assert main([*command, "--samples", "2", "--output", output]) == 0
        found.append(read_pictures(output)[0])
    both, alone = found
    assert np.array_equal(both[HEIGHT + GAP :], alone)


def test_completions_are_those_of_generate(trained, pictures, tmp_path):
    file = str(pictures / "0.png")
    output = str(tmp_path / "a.png")
    command = ["complete", trained, file, "--temperature", "0", "--samples", "1"]
    assert main([*command, "--output", output]) == 0
    (whole,) = read_pictures(output)
    (picture,) = read_pictures(file)
    model = ReformerModelWithLMHead.from_pretrained(trained)
    prompt = picture[:3].reshape(1, -1).astype(int)
    ids = model.generate(prompt, max_new_tokens=45, eos_token_id=None, rng=0)
    expected = ids.reshape(HEIGHT, WIDTH, 3)
    assert np.array_equal(whole[:, WIDTH + GAP :][:, :WIDTH], expected)


def test_grey_pictures(tmp_path, capsys):
    drawn = np.random.default_rng(0).integers(0, 256, (4, HEIGHT, WIDTH), dtype=np.uint8)
    file, folder, output = (str(tmp_path / name) for name in ("a.npy", "model", "out.png"))
    np.save(file, drawn)
    command = ["train", file, *TRAIN, "--steps", "2", "--save", folder]
    assert main(command) == 1
    assert "must be uint8 pictures (n, height, width, 3), got uint8" in capsys.readouterr().err
    assert main([*command, "--channels", "1"]) == 0
    assert main(["complete", folder, file, "--output", output, "--samples", "1"]) == 0
    with Image.open(output) as whole:
        assert whole.mode == "L"
        assert whole.size == (3 * WIDTH + 2 * GAP, 4 * HEIGHT + 3 * GAP)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "EMPTY", *TRAIN], "empty must contain pictures, got none"),
        (["train", "README", *TRAIN], "readme.md must be a picture"),
        (["train", "PICTURES", *TRAIN, "--length", "9"], "--length cannot be combined with --task"),
        (["train", "PICTURES", *TRAIN, "--offset", "9"], "--offset cannot be combined with --task"),
        (["train", "PICTURES", *TRAIN, "--whole-files"], "--whole-files cannot be combined with"),
        (["train", "PICTURES", *TRAIN, "--tokenizer", "bytes"], "--tokenizer cannot be combined"),
        (["train", "PICTURES", *TRAIN, "--set", "vocab_size=300"], "vocab_size 256"),
        (["train", "README", "--channels", "1"], "--channels needs --task image"),
        (["evaluate", "MODEL", "README"], "readme.md must be a picture"),
        (["evaluate", "MODEL", "PICTURES", "--length", "9"], "--length cannot be combined with a"),
        (["evaluate", "MODEL", "PICTURES", "--sliding", "9"], "--sliding cannot be combined"),
        (["complete", "MODEL", "README"], "readme.md must be a picture"),
        (["complete", "MODEL", "TURNED"], "turned.png must have 5 x 6 pixels, got 6 x 5"),
        (["complete", "MODEL", "EMPTY"], "empty must contain pictures, got none"),
        (["complete", "MODEL", "PICTURES", "--output", "a.jpg"], "--output must be a .png file"),
        (["complete", "MODEL", "PICTURES", "--output", "no/a.png"], "there is no folder 'no'"),
        (["complete", "MODEL", "PICTURES", "--temperature", "0"], "--samples must be at most 1"),
        (["generate", "MODEL", "--prompt", "a"], "DIR must have a model of text, got a model of"),
        (["complete", "TEXT", "PICTURES"], "DIR must have a model of pictures, got"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_named(arguments, words, trained, pictures, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "readme.md").write_text("no picture")
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "turned.png")
    places = {"EMPTY": tmp_path / "empty", "README": tmp_path / "readme.md", "MODEL": trained,
              "TURNED": tmp_path / "turned.png", "PICTURES": pictures,
              "TEXT": tmp_path / "text"}  # fmt: skip
    if "TEXT" in arguments:
        (tmp_path / "text.txt").write_text("a text of a few words " * 40)
        command = ["train", str(tmp_path / "text.txt"), "--length", "64", "--steps", "1"]
        assert main([*command, "--save", str(places["TEXT"])]) == 0
    capsys.readouterr()
    assert main([str(places.get(word, word)) for word in arguments]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("keep", ["0", "1", "1.5", "half"])
def test_a_share_that_keeps_all_or_nothing_is_refused(keep, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["complete", "model", "a.png", "--keep", keep])
    assert leaving.value.code == 2
    assert "--keep: must be a number in (0, 1)" in capsys.readouterr().err
