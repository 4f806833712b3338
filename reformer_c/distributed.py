"""Data parallel training over MPI: processes on one machine or on many, each with a share of the
data and the same weights.

    mpiexec -n 4 python -m mpi4py train.py

where train.py is a program for one process with a few lines more:

    from reformer_c import distributed

    distributed.share_threads()
    model = distributed.DataParallel(model)          # the weights are those of process 0
    data = distributed.Shard(data)
    keeping = {"folder": "my-model", "save_every": 100} if model.rank == 0 else {}
    trainer = rc.Trainer(model, data, optimizer, steps=1000, **keeping)

``-m mpi4py`` ends all processes when one fails; otherwise the others would wait for it for ever.

Extra: ``mpi`` (``pip install ".[mpi]"`` from a checkout), and an MPI of the system or
``pip install mpich``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .checks import names_keywords, number, requires_extra

try:
    from mpi4py import MPI
except ModuleNotFoundError as error:
    raise requires_extra("reformer_c.distributed", "mpi4py", "mpi") from error

from .nn import draw_seed, random_key
from .runtime import set_num_threads, show_config, underflow_to_zero

__all__ = ["DataParallel", "Shard", "average", "broadcast", "share_threads"]


@names_keywords
def broadcast(arrays: Mapping[str, np.ndarray], comm: Any = None, *, root: int = 0) -> None:
    """Give every process the arrays of `root`, in place.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        Of the same names, shapes and dtypes everywhere: a model's parameters, an optimiser's
        ``state_dict()``.
    comm : mpi4py communicator, optional
        ``MPI.COMM_WORLD`` by default.
    root : int

    Raises
    ------
    ValueError
        Somewhere the arrays are others: the same error on every process.

    Examples
    --------
    >>> broadcast({"weight": np.zeros(3)}, MPI.COMM_SELF)
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    _check_arrays(arrays)
    _check_alike(arrays, comm)
    for name in sorted(arrays):
        whole = np.ascontiguousarray(arrays[name])
        comm.Bcast(whole, root=root)
        if whole is not arrays[name]:
            arrays[name][...] = whole


@names_keywords
@underflow_to_zero()
def average(arrays: Mapping[str, np.ndarray], comm: Any = None, *, weight: float = 1.0) -> float:
    """Replace the arrays of every process by their mean over all, in place.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        Of the same names, shapes and dtypes everywhere: gradients.
    comm : mpi4py communicator, optional
        ``MPI.COMM_WORLD`` by default.
    weight : float
        How much this process's arrays count, >= 0: the labels that they are a mean over.

    Returns
    -------
    float
        This process's share of all weights. Where nothing counts anywhere it is 0, and so are the
        arrays.

    Raises
    ------
    TypeError, ValueError
        For other arrays or weights; where they differ between processes, on all of them.

    Examples
    --------
    >>> gradients = {"weight": np.ones(3)}
    >>> average(gradients, MPI.COMM_SELF, weight=5)
    1.0
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    weight = number("weight", weight, 0.0)
    _check_arrays(arrays)
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            raise TypeError(f"arrays: expected real numbers, got {array.dtype} of {name!r}")
    _check_alike(arrays, comm)
    total = comm.allreduce(weight)
    share = weight / total if total else 0.0
    for name in sorted(arrays):
        array = arrays[name]
        # what does not count may be NaN
        part = np.multiply(array, share, order="C") if share else np.zeros_like(array, order="C")
        part = np.asarray(part)  # a product of no axes is none
        comm.Allreduce(MPI.IN_PLACE, part)
        array[...] = part
    return share


def share_threads(comm: Any = None) -> int:
    """Divide the cores of each machine among the processes that may use them; this one's number
    of threads.

    Without it every process takes all cores that it may use.

    Examples
    --------
    >>> share_threads(MPI.COMM_SELF) >= 1
    True
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    config: dict[str, Any] = show_config("dicts")
    # an mpiexec that binds processes to cores has divided them already
    own = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    here = comm.Split_type(MPI.COMM_TYPE_SHARED)
    sharing = here.allgather(own).count(own)
    here.Free()
    threads = max(1, config["Threads"]["available"] // sharing)
    set_num_threads(threads)
    return threads


class Shard:
    """A share of a trainer's data: of every `size` micro-batches this process takes one.

    Parameters
    ----------
    data : object
        Anything with ``batch(step)``, as ``reformer_c.Trainer`` takes it.
    comm : mpi4py communicator, optional
        ``MPI.COMM_WORLD`` by default.

    Examples
    --------
    >>> from reformer_c.data import Windows
    >>> shard = Shard(Windows(np.arange(100), length=10), MPI.COMM_SELF)
    >>> shard.batch(0).shape, shard.length
    ((1, 10), 10)
    """

    def __init__(self, data: Any, comm: Any = None) -> None:
        comm = MPI.COMM_WORLD if comm is None else comm
        if not callable(getattr(data, "batch", None)):
            kind = type(data).__name__
            raise TypeError(f"data: expected an object with a method batch, got {kind}")
        self.data, self.rank, self.size = data, comm.rank, comm.size

    def batch(self, step: int) -> Any:
        """The micro-batch of this process."""
        return self.data.batch(step * self.size + self.rank)

    def describe(self) -> dict[str, Any]:
        """Of the data, and how many processes share it: a run goes on with as many."""
        describe = getattr(self.data, "describe", None)
        return {"data": describe() if describe else None, "processes": self.size}

    def __getattr__(self, name: str) -> Any:
        if name == "data":
            raise AttributeError(name)
        return getattr(self.data, name)


class DataParallel:
    """A model whose losses and gradients are means over all processes.

    Everything else is the model's own. Each step then has the same gradients everywhere, so the
    same optimiser keeps the weights the same.

    Parameters
    ----------
    model : ReformerModelWithLMHead
        Or any other with ``loss_and_gradients`` and ``count_targets``. Its weights become those of
        rank 0.
    comm : mpi4py communicator, optional
        ``MPI.COMM_WORLD`` by default.

    Attributes
    ----------
    rank, size : int
        The number of this process, and how many there are.

    Examples
    --------
    >>> import reformer_c as rc
    >>> config = rc.ReformerConfig(attn_layers=["local"], num_attention_heads=2, is_decoder=True)
    >>> alone = rc.ReformerModelWithLMHead(config, rng=0)
    >>> model = DataParallel(alone, MPI.COMM_SELF)
    >>> ids = np.arange(100)[None]
    >>> loss, gradients = model.loss_and_gradients(ids, labels=ids, rng=0)
    >>> len(gradients) == len(model.parameters)
    True
    """

    def __init__(self, model: Any, comm: Any = None) -> None:
        if not callable(getattr(model, "count_targets", None)):
            raise TypeError(f"model: expected one with a loss and count_targets, got {model!r}")
        self.model, self.comm = model, MPI.COMM_WORLD if comm is None else comm
        self.rank, self.size = self.comm.rank, self.comm.size
        self.synchronise()

    def synchronise(self, optimizer: Any = None) -> None:
        """Give every process the weights of rank 0, and the optimiser's state if there is one: to
        be called by all, after a ``resume`` of rank 0 alone, say."""
        broadcast(self.model.parameters, self.comm)
        self._agree_on_buckets(self._sides)
        if optimizer is not None:
            state = optimizer.state_dict()
            broadcast(state, self.comm)
            optimizer.load_state_dict(state)

    def loss_and_gradients(
        self, *args: Any, rng: Any = None, **arguments: Any
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Those of the model, over the batches of all processes: each target counts the same.

        With an integer `rng` every process drops and hashes in its own way, and the same the next
        time.
        """
        if rng is not None and self.rank:
            rng = random_key(draw_seed(rng), "rank", self.rank)
        undecided = [side for side in self._sides if side.config.num_buckets is None]
        loss, gradients = self.model.loss_and_gradients(*args, rng=rng, **arguments)
        self._agree_on_buckets(undecided)
        weight = self.model.count_targets(*args, **arguments)
        share = average(gradients, self.comm, weight=weight)
        total = self.comm.allreduce(loss * share if share else 0.0)
        return (total if self.comm.allreduce(weight) else float("nan")), gradients

    def count_targets(self, *args: Any, **arguments: Any) -> int:
        """How many targets the loss is a mean over, in the batches of all processes."""
        return self.comm.allreduce(self.model.count_targets(*args, **arguments))

    def agree(self, number: int) -> int:
        """The largest number of all processes, to be called by all: whether one is to stop, say."""
        return self.comm.allreduce(number, op=MPI.MAX)

    @property
    def _sides(self) -> list[Any]:
        """The models that hash; of another's model, none is known."""
        return list(getattr(self.model, "sides", {}).values())

    def _agree_on_buckets(self, models: Iterable[Any]) -> None:
        """The number of buckets that the first process chose or read is everybody's."""
        for model in models:
            chosen = [n for n in self.comm.allgather(model.config.num_buckets) if n is not None]
            if chosen:
                model.config = replace(model.config, num_buckets=chosen[0])

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        """The model's own, of this process alone."""
        return self.model(*args, **arguments)

    def __repr__(self) -> str:
        return f"<DataParallel: process {self.rank} of {self.size}, {self.model!r}>"

    def __getattr__(self, name: str) -> Any:
        if name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Those of the model are set there, where they are used."""
        if name in ("model", "comm", "rank", "size"):
            super().__setattr__(name, value)
        else:
            setattr(self.model, name, value)


def _check_arrays(arrays: Any) -> None:
    if not isinstance(arrays, Mapping):
        raise TypeError(f"arrays: expected arrays by name, got {type(arrays).__name__}")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            kind = type(array).__name__
            raise TypeError(f"arrays: expected an array of NumPy for {name!r}, got {kind}")
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"arrays: expected arrays without a mask, got a masked one of {name!r}")


def _check_alike(arrays: Mapping[str, np.ndarray], comm: Any) -> None:
    own = [(name, arrays[name].shape, str(arrays[name].dtype)) for name in sorted(arrays)]
    for rank, theirs in enumerate(comm.allgather(own)):
        if theirs != own:
            differ = sorted({*own} ^ {*theirs})[0]
            raise ValueError(
                f"arrays: expected the same everywhere, and {differ} is not in process "
                f"{comm.rank} and in process {rank}"
            )
