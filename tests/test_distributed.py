"""Several processes under mpiexec train as one would."""

import doctest
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from tolerances import assert_close

import reformer_c as rc

FOLDERS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
MPIEXEC = shutil.which("mpiexec", path=FOLDERS)

if find_spec("mpi4py") is None or MPIEXEC is None:
    pytest.skip("needs mpi4py and an MPI: pip install '.[mpi]' mpich", allow_module_level=True)
pytest.importorskip("safetensors", reason="the processes save")

HERE = Path(__file__).parent


def start(n, *words):
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    command = [MPIEXEC, "-n", str(n), sys.executable, "-m", "mpi4py", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, **pipes)


def run(n, *words):
    process = start(n, *words)
    _, said = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, stderr=said)


@pytest.fixture(scope="module", params=[2, 3])
def processes(request, tmp_path_factory):
    """The results of each process."""
    folder = tmp_path_factory.mktemp("mpi")
    result = run(request.param, HERE / "mpi_program.py", folder)
    assert result.returncode == 0, result.stderr
    found = [np.load(folder / f"rank{rank}.npz") for rank in range(request.param)]
    return folder, found


def test_all_have_the_same_weights_bit_for_bit(processes):
    _, (first, *others) = processes
    for other in others:
        for name in first.files:
            if "." in name or name in ("losses", "loss"):
                np.testing.assert_array_equal(first[name], other[name], err_msg=name)


def test_they_take_the_steps_of_one_process_with_as_many_micro_batches(processes):
    from mpi_program import make, text

    from reformer_c.training.data import Windows

    _, found = processes
    model = make(0)
    optimizer = rc.AdamW(model.parameters, lr=1e-2)
    data = Windows(text(), length=20, batch=2)
    trainer = rc.Trainer(model, data, optimizer, steps=4, accumulate=len(found))
    losses = [report.loss for report in trainer]
    assert_close(found[0]["losses"], losses, "replay")
    for name, array in model.parameters.items():
        assert_close(found[0][f"weight.{name}"], array, "model_backward")


def test_every_label_counts_the_same(processes):
    from mpi_program import make, text

    _, found = processes
    n = len(found)
    model = make(0)
    for name, array in model.parameters.items():
        array[...] = found[0][f"weight.{name}"]
    ids = text()[: 2 * 20 * n].reshape(n, 2, 20)
    labels = ids.copy()
    labels[0, :, 5:] = -100
    labels[-1] = -100
    whole = ids.reshape(2 * n, 20)
    loss, gradients = model.loss_and_gradients(whole, labels=labels.reshape(2 * n, 20), rng=0)
    assert_close(found[0]["loss"], loss, "replay")
    for name, gradient in gradients.items():
        assert_close(found[0][f"gradient.{name}"], gradient, "model_backward")
    assert np.isnan(found[0]["nothing"])


def test_accumulated_micro_batches_of_several_lengths_count_by_their_labels(processes):
    from mpi_program import Rows, make

    _, found = processes
    n = len(found)
    model = make(0)
    for name, array in model.parameters.items():
        array[...] = found[0][f"weight.{name}"]
    optimizer = rc.AdamW(model.parameters, lr=1e-2)
    reports = list(rc.Trainer(model, Rows(n), optimizer, steps=3, accumulate=2 * n))
    np.testing.assert_allclose(found[0]["rows.loss"], [report.loss for report in reports])
    assert found[0]["rows.targets"].tolist() == [report.targets for report in reports]
    assert found[0]["rows.targets"][1] == 0
    for name, array in model.parameters.items():
        assert_close(found[0][f"rows.{name}"], array, "model_backward")


def test_accumulated_questions_count_their_starts_and_their_ends(processes):
    from mpi_program import Questions, questions_model

    _, found = processes
    n = len(found)
    model = questions_model()
    optimizer = rc.AdamW(model.parameters, lr=1e-2)
    reports = list(rc.Trainer(model, Questions(n), optimizer, steps=3, accumulate=2 * n))
    np.testing.assert_allclose(found[0]["questions.loss"], [report.loss for report in reports])
    assert found[0]["questions.targets"].tolist() == [n, 0, n]
    for name, array in model.parameters.items():
        assert_close(found[0][f"questions.{name}"], array, "model_backward", scale=1.0)


def test_each_drops_in_its_own_way_and_the_same_again(processes):
    _, found = processes
    for rank in found:
        assert rank["again"][0] == rank["again"][1] != rank["own"]


def test_what_rank_0_resumes_goes_to_all(processes):
    folder, found = processes
    saved = rc.ReformerModelWithLMHead.from_pretrained(folder, dtype=np.float64)
    for name, array in saved.parameters.items():
        np.testing.assert_array_equal(found[-1][f"late.{name}"], array)


def test_all_hash_into_as_many_buckets_as_the_first_process(processes):
    for rank in processes[1]:
        assert rank["buckets"].tolist() == [4, 8]


def test_arrays_that_differ_are_named_everywhere(processes):
    for rank in processes[1]:
        assert str(rank["error"]).startswith(
            "arrays must be the same in every process, got ('a', (3,)"
        )


def test_one_that_fails_ends_all(tmp_path):
    program = tmp_path / "fails.py"
    program.write_text(
        "from reformer_c import distributed\n"
        "import numpy as np\n"
        "if distributed.MPI.COMM_WORLD.rank == 1: raise RuntimeError('disk on fire')\n"
        "distributed.average({'a': np.ones(3)})\n"
    )
    result = run(2, program)
    assert result.returncode != 0
    assert "disk on fire" in result.stderr


STOPPED = """
import os, sys, time
from pathlib import Path
import reformer_c as rc
from mpi_program import make, text
from reformer_c import distributed
from reformer_c.training.data import Windows

class Slow:
    def save_pretrained(self, folder):
        time.sleep(0.5)
        self.model.save_pretrained(folder)
        time.sleep(0.5)

class Model(Slow, distributed.DataParallel):
    pass

folder, bad_step = Path(sys.argv[1]), int(sys.argv[2])
distributed.set_num_threads(1)
model = Model(make(0))
own = model.model.loss_and_gradients

def turn_bad(*args, **arguments):
    loss, gradients = own(*args, **arguments)
    bad = model.rank == 1 and trainer.step + 1 == bad_step
    return float("nan") if bad else loss, gradients

model.model.loss_and_gradients = turn_bad
data = distributed.Shard(Windows(text(), length=20, batch=2))
keeping = {"folder": folder / "model"} if model.rank == 0 else {}
trainer = rc.Trainer(model, data, rc.AdamW(model.parameters, lr=1e-2), **keeping)
try:
    for report in trainer:
        if report.step == 2:
            (folder / f"pid{model.rank}").write_text(f"{os.getpid()}\\n")
finally:
    (folder / f"step{model.rank}").write_text(f"{trainer.step} {sys.exc_info()[0].__name__}")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to", ["mpiexec", "rank 0", "rank 1", "rank 1 twice"])
def test_a_signal_stops_all_after_process_0_has_saved(number, to, tmp_path):
    program = tmp_path / "stopped.py"
    program.write_text(STOPPED)
    process = start(2, program, tmp_path, -1)
    files = [tmp_path / f"pid{rank}" for rank in range(2)]
    while not all(file.exists() and file.read_text().endswith("\n") for file in files):
        if process.poll() is not None:
            pytest.fail(process.communicate()[1])
        time.sleep(0.01)
    pids = {f"rank {rank}": int(file.read_text()) for rank, file in enumerate(files)}
    pids["mpiexec"] = process.pid
    for _ in range(2 if to.endswith("twice") else 1):
        os.kill(pids[to.removesuffix(" twice")], number)
    said = process.communicate()[1]
    assert process.returncode != 0
    ends = [(tmp_path / f"step{rank}").read_text().split() for rank in range(2)]
    assert ends[0] == ends[1], said
    assert ends[0][1] == ("KeyboardInterrupt" if number == signal.SIGINT else "SystemExit")
    state = json.loads((tmp_path / "model" / "trainer_state.json").read_text())
    assert state["step"] == int(ends[0][0]) >= 2
    assert not [name for name in os.listdir(tmp_path / "model") if name.startswith(".")]
    rc.ReformerModelWithLMHead.from_pretrained(tmp_path / "model")


def test_a_loss_of_one_process_that_is_not_finite_ends_all_after_process_0_has_saved(tmp_path):
    program = tmp_path / "bad.py"
    program.write_text(STOPPED)
    result = run(2, program, tmp_path, 4)
    assert result.returncode != 0
    assert "FloatingPointError: step 4: the loss is nan" in result.stderr
    ends = [(tmp_path / f"step{rank}").read_text() for rank in range(2)]
    assert ends == ["3 FloatingPointError"] * 2
    assert json.loads((tmp_path / "model" / "trainer_state.json").read_text())["step"] == 3


def test_attributes_of_the_model_are_set_there():
    from reformer_c import distributed

    config = rc.ReformerConfig(attn_layers=["local"], num_attention_heads=2, is_decoder=True)
    model = rc.ReformerModelWithLMHead(config, rng=0)
    parallel = distributed.DataParallel(model, distributed.MPI.COMM_SELF)
    parallel.generation_config = rc.GenerationConfig(max_new_tokens=3)
    assert model.generation_config.max_new_tokens == 3
    assert parallel.generate(np.arange(4)[None]).shape == (1, 7)
    with pytest.raises(AttributeError, match=r"did you mean generation_config\?"):
        parallel.generation_confg = 3


def test_doctests_and_wrong_models():
    from reformer_c import distributed

    assert doctest.testmod(distributed).failed == 0
    config = rc.ReformerConfig(attn_layers=["local"], num_attention_heads=2)
    for wrong in (3, rc.ReformerModel(config)):
        with pytest.raises(TypeError, match=r"^model must have a loss and count_targets, got "):
            distributed.DataParallel(wrong)
    alone = distributed.MPI.COMM_SELF
    model = distributed.DataParallel(rc.ReformerForMaskedLM(config), alone)
    assert model(np.arange(9)[None]).logits.shape == (1, 9, 320)
    assert "process 0 of 1" in repr(model)
    questions = distributed.DataParallel(rc.ReformerForQuestionAnswering(config), alone)
    places = {"start_positions": [1, 3], "end_positions": [2, 9]}
    loss, _ = questions.loss_and_gradients(np.arange(18).reshape(2, 9), **places, rng=0)
    assert 1.5 < loss < 3.0

    class Other:
        """A model that is not ours."""

        parameters: ClassVar[dict] = {"a": np.zeros(2)}

        def count_targets(self, **arguments):
            return 1

        def loss_and_gradients(self, *, rng):
            return 1.0, {"a": np.ones(2)}

    assert distributed.DataParallel(Other(), alone).loss_and_gradients(rng=0)[0] == 1.0
    scalar = {"a": np.array(2.0)}
    distributed.average(scalar, alone)
    assert scalar["a"] == 2
    for wrong, words in (
        (3, " must be a mapping.* got int"),
        ({"a": [1.0]}, r"\['a'\] must.* got list"),
    ):
        for function in (distributed.average, distributed.broadcast):
            with pytest.raises(TypeError, match=f"^arrays{words}"):
                function(wrong, alone)
    with pytest.raises(TypeError, match=r"^weight must be a number, got 'x'"):
        distributed.average(scalar, alone, weight="x")
    with pytest.raises(TypeError, match=r"did you mean weight\?"):
        distributed.average(scalar, alone, weigth=1)
    with pytest.raises(TypeError, match=r"^data must have a method batch, got int"):
        distributed.Shard(3, alone)
    with pytest.raises(TypeError, match=r"^arrays\['a'\] must be floating-point, got int64"):
        distributed.average({"a": np.ones(2, np.int64)}, alone)
    for weight in (-1, np.nan):
        with pytest.raises(ValueError, match=r"^weight must be a finite number >= 0"):
            distributed.average({"a": np.ones(2)}, alone, weight=weight)
