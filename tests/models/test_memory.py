"""The memory of a step is predicted, and a step that cannot fit is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_models import random_ids, small_config
from tolerances import assert_close

import reformer_c as rc
from reformer_c import _core, runtime
from reformer_c.models.heads import Classifier
from reformer_c.ops.machine import layer_scratch

MEASURE = """
import json
import sys
import numpy as np
import reformer_c as rc
from reformer_c.models.presets import preset_config

kind, name, changes, length, batch, budget = sys.argv[1:4] + [int(x) for x in sys.argv[4:]]
rc.set_num_threads(2)
model = getattr(rc, kind)(preset_config(name, length, **json.loads(changes)), rng=0)
ids = np.random.default_rng(0).integers(2, 258, (batch, length))

def resident(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))

rc.fma_peak(0.01)  # threads are there
open("/proc/self/clear_refs", "w").write("5")  # forget the largest size so far
before = resident("VmRSS")
if kind == "ReformerModel":
    states = model.forward(ids, rng=0, memory_budget=budget)
    model.backward(states * np.float32(0.5))
else:
    model.loss_and_gradients(ids, labels=ids, rng=0, memory_budget=budget)
said = model.memory(length, batch=batch, memory_budget=budget).total
print(resident("VmHWM") - before, said)
"""
WIDE = {"feed_forward_size": 2048, "chunk_size_feed_forward": 2048}


def can_measure():
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@pytest.mark.skipif(not can_measure(), reason="needs a system that tells the peak of a process")
@pytest.mark.parametrize(
    ("name", "changes", "length", "batch", "budget"),
    [
        ("tiny", {}, 16_384, 1, 0),
        ("tiny", {}, 4096, 4, 2**30),
        ("book", {}, 4096, 1, 0),
        ("book", {"reversible": False}, 4096, 1, 0),
        ("book", {"reversible": False}, 2048, 2, 100_000_000),
        ("book", {"attn_layers": ["full", "full_shared"], "num_hidden_layers": 2}, 2048, 1, 0),
        ("book", {"attn_layers": ["hash"], "num_hidden_layers": 2}, 4096, 1, 0),
        ("book", {"attn_layers": ["hash"], "num_key_value_heads": 1}, 2048, 2, 100_000_000),
        ("book", {"num_attention_heads": 4, "num_key_value_heads": 1}, 4096, 1, 0),
        ("book", {"num_attention_heads": 4, "num_key_value_heads": 2}, 2048, 2, 100_000_000),
        ("book", {"attn_layers": ["local"], "local_shared_qk": True}, 4096, 1, 0),
        ("book", {}, 2048, 2, 100_000_000),
        ("tiny", {"kept_dtype": "bfloat16"}, 4096, 4, 2**30),
        ("book", {"kept_dtype": "bfloat16"}, 2048, 2, 100_000_000),
        ("tiny", {"residual_dtype": "int16"}, 16_384, 1, 0),
        ("tiny", {"residual_dtype": "int32"}, 4096, 4, 2**30),
        ("book", {"residual_dtype": "int16"}, 4096, 1, 0),
        ("book", {"residual_dtype": "int16"}, 65_536, 1, 0),
        ("book", {"residual_dtype": "int16"}, 2048, 2, 100_000_000),
        ("book", {"residual_dtype": "int16", "kept_dtype": "bfloat16"}, 2048, 2, 100_000_000),
        ("tiny", {"shared_embeddings": True, "vocab_size": 50_000}, 2048, 1, 0),
        # activations in NumPy, of all hidden units at once
        ("book", WIDE | {"hidden_act": "xielu"}, 2048, 1, 0),
        ("book", WIDE | {"hidden_act": "prelu"}, 2048, 1, 0),
        ("book", WIDE | {"feed_forward_gated": True}, 2048, 1, 0),
        ("book", WIDE | {"hidden_act": "prelu", "feed_forward_gated": True}, 2048, 1, 0),
        ("book", WIDE | {"hidden_act": "xielu", "feed_forward_gated": True}, 2048, 1, 0),
    ],
)
def test_a_step_takes_what_was_said_within_a_tenth(name, changes, length, batch, budget):
    measured, said = measure("ReformerModelWithLMHead", name, changes, length, batch, budget)
    assert_close(said, measured, "memory")


@pytest.mark.skipif(not can_measure(), reason="needs a system that tells the peak of a process")
@pytest.mark.parametrize(
    ("name", "length", "batch", "budget"),
    [("tiny", 16_384, 1, 0), ("tiny", 4096, 4, 2**30), ("book", 4096, 1, 0)],
)
def test_a_head_of_the_users_adds_the_states_and_their_gradient(name, length, batch, budget):
    measured, said = measure("ReformerModel", name, {}, length, batch, budget)
    assert_close(said, measured, "memory")


def measure(kind, name, changes, *numbers):
    arguments = [kind, name, json.dumps(changes), *map(str, numbers)]
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return map(int, result.stdout.split())


@pytest.mark.skipif(not can_measure(), reason="needs a system that tells the peak of a process")
@pytest.mark.parametrize(
    ("changes", "length", "batch", "budget"),
    [
        ({}, 4096, 1, 0),
        ({}, 2048, 2, 100_000_000),
        ({"shared_embeddings": True, "vocab_size": 10_000}, 2048, 1, 0),
        ({"cross_attention": "lsh"}, 4096, 1, 0),
    ],
)
def test_an_encoder_decoder_takes_no_more_than_was_said(changes, length, batch, budget):
    measured, said = measure("ReformerEncoderDecoder", "book", changes, length, batch, budget)
    assert 0.75 * said < measured < 1.1 * said


def model_of(kind=rc.ReformerModelWithLMHead, **changes):
    return kind(small_config(**changes), rng=0)


def test_the_parts_add_up_and_are_told():
    memory = model_of().memory(42, 2, memory_budget=10**9)
    parts = vars(memory)
    assert memory.total == sum(parts.values())
    assert all(name in str(memory) for name in parts)
    assert memory.gradients == sum(a.nbytes for a in model_of().parameters.values())


def test_depth_adds_gradients_and_bucket_ids_alone():
    shallow, deep = (
        model_of(attn_layers=["local", "lsh"] * n, hidden_dropout_prob=0.1).memory(42, 8)
        for n in (1, 10)
    )
    assert deep.streams - shallow.streams == 9 * 8 * 42 * 2 * 2 * 4  # b t h r, int32
    assert deep.working <= shallow.working
    assert deep.kept == shallow.kept == 0


def test_a_budget_keeps_as_many_layers_as_it_has_room_for():
    model, kept = model_of(), []
    for budget in range(0, 400_000, 5000):
        memory = model.memory(42, memory_budget=budget)
        assert memory.kept <= budget
        kept.append(memory.kept)
    assert kept == sorted(kept)
    assert len(set(kept)) == 4  # none of three layers, one, two, three
    assert model.memory(42, memory_budget=np.inf).kept == kept[-1]


def test_a_budget_may_be_a_share_of_what_is_free(monkeypatch):
    model = model_of()
    everything = model.memory(42, memory_budget=np.inf).kept
    monkeypatch.setattr("reformer_c.models.calls.available_memory", lambda: 4 * everything)
    assert model.memory(42, memory_budget=0.25).kept == everything
    assert model.memory(42, memory_budget=0.24).kept < everything
    assert model.memory(42, memory_budget=1).kept == 0  # a byte
    monkeypatch.setattr("reformer_c.models.calls.available_memory", lambda: None)
    assert model.memory(42, memory_budget=0.25).kept == 0


def test_a_calls_budget_takes_the_place_of_the_configurations():
    model = model_of(memory_budget=np.inf)
    assert model.memory(42).kept > 0
    assert model.memory(42, memory_budget=0).kept == 0
    ids = random_ids((1, 42))
    kept, rebuilt = (
        model.loss_and_gradients(ids, labels=ids, rng=0, memory_budget=budget)
        for budget in (None, 0)
    )
    assert kept[0] == rebuilt[0]
    for name, gradient in kept[1].items():
        assert_close(gradient, rebuilt[1][name], "backward")


def test_a_step_that_cannot_fit_is_refused_with_the_numbers(monkeypatch):
    model, ids = model_of(), random_ids((2, 42))
    needed = model.memory(42, 2)
    monkeypatch.setattr("reformer_c.models.calls.available_memory", lambda: needed.total)
    model.loss_and_gradients(ids, labels=ids, rng=0)
    monkeypatch.setattr("reformer_c.models.calls.available_memory", lambda: needed.total - 1)
    forward = "reformer_c.models.body.Pass.forward"
    monkeypatch.setattr(forward, lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(MemoryError) as refusal:
        model.loss_and_gradients(ids, labels=ids, rng=0)
    for words in ("2 x 42 tokens", str(needed), "are free", "streams", "working"):
        assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        ({"length": 0}, ValueError, "length"),
        ({"length": 43}, ValueError, "length must be at most 42"),
        ({"length": 2.0}, TypeError, "length"),
        ({"batch": 0}, ValueError, "batch"),
        ({"num_hashes": 0}, ValueError, "num_hashes"),
        ({"memory_budget": -1}, ValueError, "memory_budget"),
        ({"memory_budget": "2 GB"}, TypeError, "memory_budget"),
    ],
)
def test_bad_arguments_are_named(arguments, error, word):
    with pytest.raises(error, match=word):
        model_of().memory(**({"length": 42} | arguments))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (rc.ReformerForMaskedLM, {"is_decoder": False}),
        (rc.ReformerForSequenceClassification, {"is_decoder": False}),
        (rc.ReformerForQuestionAnswering, {"is_decoder": False}),
        (rc.ReformerModelWithLMHead, {"attention_scope": "bucket"}),
        (rc.ReformerModelWithLMHead, {"lsh_attn_chunk_length": 64, "num_buckets": None}),
    ],
)
def test_every_model_tells_its_memory(kind, changes):
    model = model_of(kind, **changes)
    memory = model.memory(42)
    assert memory.total > memory.gradients
    assert (memory.working > 0) or isinstance(model.head, Classifier)


def test_scratch_of_an_unknown_op_is_refused():
    with pytest.raises(ValueError, match="op must be"):
        layer_scratch("dropout", 1, 2, 3)


# ---- what is free ----


def group(root, **files):
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text)


def free(tmp_path, own):
    system = "MemTotal: 9000 kB\nMemAvailable:    5000 kB\nCommitLimit: 7000 kB\n"
    group(tmp_path / "proc", meminfo=system + "Committed_AS: 3000 kB\nHugePages_Total: 0\n")
    (tmp_path / "own").write_text(own)
    found = runtime.available_memory(tmp_path / "root", tmp_path / "own", tmp_path / "proc")
    return found - _core.pool_cached()  # memory that the pool keeps counts as free, too


def test_free_memory_is_the_systems_or_less_where_the_group_is_bounded(tmp_path):
    assert free(tmp_path, "") == 5000 * 1024
    used = {"memory__current": "900000\n", "memory__stat": "anon 3\ninactive_file 200000\n"}
    group(tmp_path / "root" / "a" / "b", memory__max="max\n", **used)
    assert free(tmp_path, "0::/a/b\n") == 5000 * 1024
    group(tmp_path / "root" / "a", memory__max="1000000\n", **used)
    assert free(tmp_path, "0::/a/b\n") == 300_000
    group(tmp_path / "root" / "a", memory__max="600000\n", **used)
    assert free(tmp_path, "0::/a/b\n") == 0
    older = {
        "memory__limit_in_bytes": "1000000",
        "memory__usage_in_bytes": "600000",
        "memory__stat": "inactive_file 7\ntotal_inactive_file 50000\n",
    }
    group(tmp_path / "root" / "memory" / "c", **older)
    assert free(tmp_path, "4:memory:/c\n1:cpu:/\n") == 450_000


def test_without_statistics_nothing_is_refused(tmp_path):
    nowhere = tmp_path / "nowhere"
    assert runtime.available_memory(nowhere, nowhere, nowhere) is None


def test_free_memory_is_what_the_group_may_take_without_being_slowed_down(tmp_path):
    used = {"memory__current": "100000\n", "memory__stat": "inactive_file 20000\n"}
    group(tmp_path / "root", memory__max="max\n", memory__high="500000\n", **used)
    assert free(tmp_path, "0::/\n") == 420_000
    group(tmp_path / "root", memory__max="300000\n", memory__high="max\n", **used)
    assert free(tmp_path, "0::/\n") == 220_000
    # without statistics nothing counts as cached
    (tmp_path / "root" / "memory.stat").unlink()
    assert free(tmp_path, "0::/\n") == 200_000


def test_free_memory_is_what_a_system_promises_that_promises_no_more_than_it_has(tmp_path):
    (tmp_path / "proc/sys/vm").mkdir(parents=True)
    for rule, expected in {"0": 5000, "1": 5000, "2": 4000}.items():
        (tmp_path / "proc/sys/vm/overcommit_memory").write_text(rule + "\n")
        assert free(tmp_path, "") == expected * 1024


@pytest.mark.parametrize(("limit", "size"), [("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")])
def test_free_memory_is_what_the_process_may_take(tmp_path, monkeypatch, limit, size):
    resource = pytest.importorskip("resource")
    limits = {getattr(resource, limit): 3_000_000}
    monkeypatch.setattr(
        resource, "getrlimit", lambda which: (limits.get(which, resource.RLIM_INFINITY),) * 2
    )
    group(tmp_path / "proc" / "self", status=f"Name:\tx y\n{size}:\t    1000 kB\nThreads:\t1\n")
    assert free(tmp_path, "") == 3_000_000 - 1_024_000
    limits[getattr(resource, limit)] = 1_000_000
    assert free(tmp_path, "") == 0


@pytest.mark.parametrize(
    ("own", "place", "files", "expected"),
    [
        ("0::/a/b\n", "a", {"memory__max": "1000000\n"}, 1_000_000),
        ("0::/a/b\n", "a/b", {"memory__max": "max\n", "memory__high": "700000\n"}, 700_000),
        ("0::/\n", "", {"memory__max": "max\n"}, 9000 * 1024),
        ("4:memory:/c\n", "memory/c", {"memory__limit_in_bytes": "5000000\n"}, 5_000_000),
        ("4:memory:/c\n", "memory", {"memory__limit_in_bytes": "5000000\n"}, 5_000_000),
        ("4:memory:/c\n", "memory/c", {"memory__limit_in_bytes": f"{2**63}\n"}, 9000 * 1024),
    ],
)
def test_all_memory_is_the_machines_or_the_containers(tmp_path, own, place, files, expected):
    usage = {"memory__current": "1\n", "memory__usage_in_bytes": "1\n"}
    group(tmp_path / "root" / place, **files, **usage)
    free(tmp_path, own)  # writes the rest
    found = runtime._all_memory(tmp_path / "root", tmp_path / "own", tmp_path / "proc")
    assert found == expected


LIMITED = """
import resource
import sys
limit = getattr(resource, sys.argv[1])
if sys.argv[2] == "before":
    resource.setrlimit(limit, (2**32, 2**32))
import numpy as np
import reformer_c as rc
from reformer_c.models import body
from reformer_c.runtime import available_memory

def largest():
    low, high = 0, 2**34
    while high - low > 2**20:
        middle = (low + high) // 2
        try:
            np.empty(middle, np.uint8)
            low = middle
        except MemoryError:
            high = middle
    return low

rules = dict(
    attn_layers=["local", "lsh"], num_attention_heads=2, attention_head_size=8, hidden_size=64,
    axial_pos_embds=False, max_position_embeddings=50_000,
)
config = rc.ReformerConfig(**rules, is_decoder=True)
small, large = np.arange(100)[None], np.full((100, 50_000), 5)
models = [rc.ReformerModelWithLMHead(config, rng=0),
          rc.ReformerEncoderDecoder(rc.ReformerConfig(**rules), decoder=config, rng=0)]
if sys.argv[2] == "before":
    before = largest()
models[0](small, rng=0)
models[0].loss_and_gradients(small, labels=small, rng=0)
if sys.argv[2] == "after":  # what was reserved in a pass is not in the way of a limit that follows
    resource.setrlimit(limit, (2**32, 2**32))
    before = 2**32 - 2**29
assert largest() > before - 2**26, (before, largest())
assert abs(largest() - available_memory()) < 2**26, (largest(), available_memory())
body.Pass.forward = lambda *_, **__: sys.exit("it began")
assert models[0].memory(50_000, 100).total > 2**32
for model in models:
    try:
        model.loss_and_gradients(large, labels=large, rng=0)
    except MemoryError as error:
        assert "tokens" in str(error) and "are free" in str(error), error
    else:
        sys.exit("not refused")
del large
print("ok")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_a_process_whose_addresses_are_limited_keeps_them(limit, when):
    """ulimit -v, ulimit -d: no memory is reserved, and a step that cannot fit is refused."""
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, limit, when], capture_output=True, text=True
    )
    assert result.stdout.strip() == "ok", result.stderr
