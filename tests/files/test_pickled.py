"""torch's files without torch: real ones are read; hostile ones are refused and run no code."""

import collections
import io
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import small_config

from reformer_c.files.pickled import MAGIC, VERSION, iterate_torch_file, read_torch_file
from reformer_c.models.model import ReformerModelWithLMHead

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"


# ---- files that torch itself wrote ----


@pytest.mark.parametrize("name", ["zip.bin", "legacy.bin"])
def test_both_formats_of_torch_are_read_bit_for_bit(name):
    with np.load(FIXTURES / "torch_files.npz") as file:
        expected = dict(file)
    actual = read_torch_file(FIXTURES / name)
    assert list(actual) == list(expected)
    for key, array in expected.items():
        assert actual[key].dtype == array.dtype, key
        assert actual[key].flags.writeable
        np.testing.assert_array_equal(actual[key], array, err_msg=key)


def test_torch_is_not_imported():
    loaded = {name for name in sys.modules if name.split(".")[0] == "torch"}
    read_torch_file(FIXTURES / "zip.bin")
    assert {name for name in sys.modules if name.split(".")[0] == "torch"} == loaded


# ---- hand-made files ----


class Named:
    """A global pickled under any name, whether it exists or not."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self, *arguments):
        raise AssertionError("only pickled, never called")


class Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments

    __call__ = Named.__call__


class Stored:
    def __init__(self, key="0", numel=4, kind="FloatStorage", words=None):
        self.words = words or ("storage", Named("torch", kind), key, "cpu", numel)


class Writer(pickle._Pickler):
    """Python's own pickler, but globals are written by name alone."""

    dispatch = pickle._Pickler.dispatch.copy()

    def persistent_id(self, value):
        return value.words if isinstance(value, Stored) else None

    def save_named(self, value):
        self.write(b"c" + f"{value.module}\n{value.name}\n".encode())

    dispatch[Named] = save_named


def pickled(value):
    stream = io.BytesIO()
    Writer(stream, protocol=2).dump(value)
    return stream.getvalue()


def tensor(storage=None, offset=0, shape=(2, 2), strides=(2, 1), function=None):
    function = function or Named("torch._utils", "_rebuild_tensor_v2")
    return Call(function, storage or Stored(), offset, shape, strides, False, {})


NUMBERS = np.arange(4, dtype="<f4").tobytes()


def zipped(state, storages=None, compression=zipfile.ZIP_STORED, **more):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("archive/data.pkl", state if isinstance(state, bytes) else pickled(state))
        for key, data in (storages or {"0": NUMBERS}).items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in more.items():
            archive.writestr(f"archive/{name}", data)
    return stream.getvalue()


COUNTED = struct.pack("<q", 4) + NUMBERS


def legacy(state, keys=("0",), storages=COUNTED, magic=MAGIC):
    parts = [magic, VERSION, {"protocol_version": VERSION, "little_endian": True}]
    body = state if isinstance(state, bytes) else pickled(state)
    return b"".join(map(pickled, parts)) + body + pickled(list(keys)) + storages


FORMATS = [zipped, legacy]


def read(tmp_path, content):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    return read_torch_file(path)


@pytest.mark.parametrize("form", FORMATS)
def test_our_own_files_are_like_torchs(tmp_path, form):
    state = {"a": tensor(), "b": tensor(offset=1, shape=(3,), strides=(1,))}
    found = read(tmp_path, form(state))
    assert found["a"].tolist() == [[0, 1], [2, 3]]
    assert found["b"].tolist() == [1, 2, 3]


def test_a_part_of_a_storage_has_a_place_of_its_own(tmp_path):
    """Legacy files: ("storage", class, key, device, size, (key of the part, offset, size))."""
    words = ("storage", Named("torch", "FloatStorage"), "0", "cpu", 4, ("0.1", 1, 3))
    state = {"a": tensor(Stored(words=words), 1, (2,), (1,))}
    assert read(tmp_path, legacy(state))["a"].tolist() == [2, 3]


def test_big_endian_files_are_read(tmp_path):
    data = np.arange(4, dtype=">f4").tobytes()
    assert read(tmp_path, zipped({"a": tensor()}, {"0": data}, byteorder=b"big"))["a"][1, 1] == 3


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model", "module"])
def test_weights_may_be_an_entry_among_others(tmp_path, form, name):
    moment = tensor(Stored(key="1", kind="LongStorage"), 0, (2,), (1,))
    state = {
        "epoch": 3, "pytorch-lightning_version": "2.6.0", "hyper_parameters": {"lr": 1e-3},
        "loops": {"done": [True, None]}, "callbacks": {"Checkpoint": {"best": 0.5, "path": ""}},
        "optimizer_states": [{"state": {0: {"step": moment}}, "param_groups": [{"params": [0]}]}],
        name: {"model.a": tensor()},
    }  # fmt: skip
    steps = np.arange(2, dtype="<i8").tobytes()
    if form is zipped:
        content = zipped(state, {"0": NUMBERS, "1": steps})
    else:
        content = legacy(state, ("0", "1"), COUNTED + struct.pack("<q", 2) + steps)
    found = read(tmp_path, content)
    assert {name: array.tolist() for name, array in found.items()} == {"model.a": [[0, 1], [2, 3]]}


@pytest.mark.parametrize("form", FORMATS)
def test_numbers_that_numpy_does_not_have_are_named_with_their_tensor(tmp_path, form):
    words = ("storage", Named("torch.storage", "UntypedStorage"), "0", "cpu", 16)
    with_dtype = Call(
        Named("torch._utils", "_rebuild_tensor_v3"), Stored(words=words), 0, (2, 2), (2, 1), False,
        {}, Named("torch", "float8_e4m3fn"),
    )  # fmt: skip
    for value, kind in (
        (with_dtype, "float8_e4m3fn"),
        (tensor(Stored(kind="ComplexFloatStorage")), "ComplexFloatStorage"),
    ):
        with pytest.raises(ValueError, match=f"a.weight of type {kind}"):
            read(tmp_path, form({"a.weight": value}))


# ---- attacks ----


class Trap:
    """Unpickling this with Python's pickle creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def attacks(sign):
    name = Named
    system = Call(name("os", "system"), f"touch {sign}")
    getattr_ = name("builtins", "getattr")
    module = Call(name("builtins", "__import__"), "os")
    opened = Call(name("io", "open"), str(sign), "w")
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    yield "os.system", {"a": system}
    yield "posix.system", {"a": Call(name("posix", "system"), f"touch {sign}")}
    yield "a chain of getattr", {"a": Call(Call(getattr_, module, "system"), f"touch {sign}")}
    yield "eval", {"a": Call(name("builtins", "eval"), f"open({str(sign)!r}, 'w')")}
    yield "open", {"a": opened}
    yield "as an argument of a tensor", {"a": Call(rebuild, Stored(), 0, (2, 2), (2, 1), opened)}
    yield "as the storage", {"a": Call(rebuild, system, 0, (2, 2), (2, 1), False, {})}
    yield "in a persistent id", {"a": tensor(Stored(words=("storage", system, "0", "cpu", 4)))}
    yield "a name with a path", {"a": Call(name("torch._utils", "sys.modules.clear"))}
    yield "partial", {"a": Call(name("functools", "partial"), name("os", "system"), "true")}
    yield "a dictionary's items", {"a": Call(name("collections", "OrderedDict"), [["b", system]])}
    yield "another module's OrderedDict", Call(name("os", "OrderedDict"))
    yield "numpy", {"a": Call(name("numpy.core.multiarray", "_reconstruct"), 1)}
    yield "torch.load", {"a": Call(name("torch", "load"), "x")}


NAMES = [name for name, _ in attacks(Path())]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("attack", NAMES)
def test_a_call_of_anything_else_is_refused_and_not_made(tmp_path, form, attack):
    sign = tmp_path / "sign"
    content = form(dict(attacks(sign))[attack])
    with pytest.raises(ValueError, match="is refused: it has"):
        read(tmp_path, content)
    assert not sign.exists()


RAW = {
    # OBJ and INST call what they name; NEWOBJ makes an instance
    "INST": b"\x80\x02(S'true'\nios\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\nS'true'\no.",
    "NEWOBJ": b"\x80\x02cbuiltins\nobject\n)\x81.",
    "EXT1": b"\x80\x02\x82\x01.",
    "protocol 0's persistent id": b"Pos.system\n.",
    # attributes of a function that would stay after the load
    "BUILD on a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}U\x01aK\x01sb.",
    "an empty stack": b"\x80\x02R.",
    "a mark as a value": b"\x80\x02(R.",
    "no mark": b"\x80\x02t.",
    "a memo that is not there": b"\x80\x02h\x05.",
    "no end": b"\x80\x02}",
    "nothing": b"",
    "text": b"import os; os.system('true')",
    "a text of 2^60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"a.",
    "a number of 2^31 bytes": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"a.",
    "a key that is a list": b"\x80\x02}]K\x01s.",
    "a key without a value": b"\x80\x02}(K\x01u.",
    "items of a list": b"\x80\x02](K\x01K\x02u.",
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", RAW)
def test_other_instructions_and_broken_programs_are_refused(tmp_path, form, name):
    with pytest.raises(ValueError, match=r"pytorch_model\.bin' is "):
        read(tmp_path, form(RAW[name]))


HUGE = 2**61
# a few bytes in the file that expand without limit
NESTED: tuple = ()
for _ in range(60):
    NESTED = (NESTED, NESTED)
BAD_TENSORS = {
    "beyond the storage": tensor(offset=1),
    "far beyond": tensor(shape=(HUGE, 2), strides=(1, 1)),
    "strides far beyond": tensor(strides=(HUGE, 1)),
    "a huge shape over one number": tensor(shape=(HUGE, HUGE), strides=(0, 0)),
    "an empty shape with a huge side": tensor(shape=(0, HUGE), strides=(0, 0)),
    "more dimensions than NumPy has": tensor(shape=(1,) * 100, strides=(1,) * 100),
    "before the storage": tensor(offset=-1),
    "a negative stride": tensor(offset=3, strides=(-2, -1)),
    "a negative length": tensor(shape=(-2, 2)),
    "lengths that are no numbers": tensor(shape=("2", 2)),
    "a length of 2^60 tuples": tensor(shape=(NESTED, 2)),
    "a kind of 2^60 tuples": tensor(Stored(words=("storage", NESTED, "0", "cpu", 4))),
    "a length that is True": tensor(shape=(True, 2)),
    "a list of lengths": tensor(shape=[2, 2]),
    "fewer strides than lengths": tensor(strides=(1,)),
    "a storage that says more than there is": tensor(Stored(numel=400), shape=(400,), strides=(1,)),
    "a storage that says far more": tensor(Stored(numel=HUGE), shape=(HUGE,), strides=(1,)),
    "a storage that is not there": tensor(Stored(key="../../../etc/passwd")),
    "wider numbers than there are": tensor(Stored(kind="DoubleStorage")),
    "numbers of an unknown kind": tensor(Stored(kind="ComplexFloatStorage")),
    "a storage of another module": tensor(
        Stored(words=("storage", Named("os", "FloatStorage"), "0", "cpu", 4))
    ),
    "something persistent that is no storage": tensor(Stored(words=("module", 1, 2, 3, 4))),
    "a string": "not a tensor",
    "a number": 3,
    "a dictionary": {"b": tensor()},
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_that_cannot_be_are_refused(tmp_path, form, name):
    with pytest.raises(ValueError, match=r"pytorch_model\.bin' is "):
        read(tmp_path, form({"good": tensor(), "bad": BAD_TENSORS[name]}))


@pytest.mark.parametrize("state", [[tensor()], {3: tensor()}, tensor(), None])
def test_what_is_no_dictionary_of_tensors_by_name_is_refused(tmp_path, state):
    with pytest.raises(ValueError, match="is refused"):
        read(tmp_path, zipped(state))


def test_one_storage_of_two_kinds_is_refused(tmp_path):
    state = {"a": tensor(), "b": tensor(Stored(kind="IntStorage"))}
    with pytest.raises(ValueError, match="two types"):
        read(tmp_path, legacy(state))


def test_a_compressed_storage_is_refused(tmp_path):
    bomb = zipped({"a": tensor()}, {"0": bytes(10**6)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        read(tmp_path, bomb)


def test_legacy_files_of_another_magic_or_list_of_storages_are_refused(tmp_path):
    good = {"a": tensor()}
    negative = struct.pack("<q", -4) + NUMBERS
    for content in (
        legacy(good, magic=3), legacy(good, keys=()), legacy(good, keys=("0", "1")),
        legacy(good, storages=negative), legacy(good, storages=b""), legacy(good, keys=(NESTED,)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"pytorch_model\.bin' is "):
            read(tmp_path, content)


@pytest.mark.parametrize("name", ["zip.bin", "legacy.bin"])
def test_files_that_are_cut_off_are_refused(tmp_path, name):
    whole = (FIXTURES / name).read_bytes()
    path = tmp_path / name
    for end in range(0, len(whole) - 1, max(1, len(whole) // 60)):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=f"{name}' is "):
            read_torch_file(path)


@pytest.mark.parametrize("name", ["zip.bin", "legacy.bin"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_bytes_are_read_or_refused_and_nothing_else(tmp_path_factory, name, data):
    content = bytearray((FIXTURES / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("changed") / "a.bin"
    path.write_bytes(content)
    try:
        for _, array in iterate_torch_file(path):
            assert array.size <= 2**48
    except ValueError:
        pass


def test_the_trap_is_one(tmp_path):
    """Python's own pickle would have run it."""
    pickle.loads(pickle.dumps(Trap(tmp_path / "sign")))
    assert (tmp_path / "sign").exists()
    (tmp_path / "sign").unlink()
    with pytest.raises(ValueError, match="is refused"):
        read(tmp_path, zipped(pickle.dumps(Trap(tmp_path / "sign"), protocol=2)))
    assert not (tmp_path / "sign").exists()


# ---- models ----


def torch_zip(parameters):
    """A state_dict as torch would write it, mask constants and the bias's second name included."""
    state, storages = collections.OrderedDict(), {}
    at = "reformer.encoder.layers.0.attention.self_attention."
    constants = {f"{at}mask_value_float32": np.float32(-1e9)}
    constants[f"{at}self_mask_value_float16"] = np.float32(-1e3)
    for i, (name, array) in enumerate({**parameters, **constants}.items()):
        strides = tuple(s // array.itemsize for s in np.asarray(array).strides)
        storages[str(i)] = np.asarray(array).tobytes()
        stored = Stored(str(i), np.size(array))
        state[name] = tensor(stored, 0, np.shape(array), strides)
        if name == "lm_head.bias":
            state["lm_head.decoder.bias"] = tensor(stored, 0, np.shape(array), strides)
    return zipped(dict(state), storages)


def test_a_model_opens_from_the_older_file(tmp_path):
    model = ReformerModelWithLMHead(small_config(), rng=0)
    model.parameters["lm_head.bias"][:] = 7
    model.config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(torch_zip(model.parameters))
    back = ReformerModelWithLMHead.from_pretrained(tmp_path)
    assert all(np.array_equal(back.parameters[k], v) for k, v in model.parameters.items())


def test_shards_of_the_older_file_are_read_by_their_index(tmp_path):
    model = ReformerModelWithLMHead(small_config(), rng=0)
    model.config.save_pretrained(tmp_path)
    names, index = list(model.parameters), {}
    for i, part in enumerate((names[:5], names[5:])):
        shard = f"pytorch_model-0000{i + 1}-of-00002.bin"
        content = torch_zip({name: model.parameters[name] for name in part})
        (tmp_path / shard).write_bytes(content)
        index |= dict.fromkeys(part, shard)
    text = str({"weight_map": index}).replace("'", '"')
    (tmp_path / "pytorch_model.bin.index.json").write_text(text)
    back = ReformerModelWithLMHead.from_pretrained(tmp_path)
    assert all(np.array_equal(back.parameters[k], v) for k, v in model.parameters.items())


def test_a_hostile_model_is_refused(tmp_path):
    sign = tmp_path / "sign"
    small_config().save_pretrained(tmp_path)
    state = dict(attacks(sign))["os.system"]
    (tmp_path / "pytorch_model.bin").write_bytes(legacy(state))
    with pytest.raises(ValueError, match=r"refused: it has a call of os\.system"):
        ReformerModelWithLMHead.from_pretrained(tmp_path)
    assert not sign.exists()
