"""Data-parallel training over MPI: processes on one machine or several, each with its own share
of the data and the same weights.

    mpiexec -n 4 python -m mpi4py train.py

where train.py is a program for one process with a few additional lines:

    from reformer_c import distributed

    distributed.share_threads()
    model = distributed.DataParallel(model)          # the weights are those of process 0
    data = distributed.Shard(data)
    keeping = {"folder": "my-model", "save_every": 100} if model.rank == 0 else {}
    trainer = rc.Trainer(model, data, optimizer, steps=1000, **keeping)

``-m mpi4py`` ends all processes when one fails; otherwise the others would wait forever.

Extra: ``mpi`` (``pip install "reformer_c[mpi]"``, or from a checkout
``pip install -e ".[mpi]"``), and an MPI: the system's, or that of ``pip install mpich``.
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

from .layers.randomness import draw_seed, random_key
from .runtime import set_num_threads, show_config, underflow_to_zero

__all__ = ["DataParallel", "Shard", "average", "broadcast", "share_threads"]


@names_keywords
def broadcast(arrays: Mapping[str, np.ndarray], comm: Any = None, *, root: int = 0) -> None:
    """Copy the arrays of `root` to every process, in place.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        The same names, shapes and dtypes in every process: a model's parameters, an optimiser's
        ``state_dict()``.
    comm : mpi4py communicator, optional
        ``MPI.COMM_WORLD`` by default.
    root : int

    Raises
    ------
    ValueError
        The arrays differ between processes; every process raises the same error.

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
    """Replace the arrays of every process by their mean over all processes, in place.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        The same names, shapes and dtypes in every process: gradients.
    comm : mpi4py communicator, optional
        ``MPI.COMM_WORLD`` by default.
    weight : float
        The weight of this process's arrays, >= 0: the number of labels that they average over.

    Returns
    -------
    float
        This process's fraction of the total weight. If the total is 0, it is 0 and the arrays are
        set to 0.

    Raises
    ------
    TypeError, ValueError
        Names the argument. If the arrays differ between processes, every process raises.

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
            raise TypeError(f"arrays[{name!r}] must be floating-point, got {array.dtype}")
    _check_alike(arrays, comm)
    total = comm.allreduce(weight)
    share = weight / total if total else 0.0
    for name in sorted(arrays):
        array = arrays[name]
        # values with weight 0 may be NaN
        part = np.multiply(array, share, order="C") if share else np.zeros_like(array, order="C")
        part = np.asarray(part)  # a product with no axes is a scalar
        comm.Allreduce(MPI.IN_PLACE, part)
        array[...] = part
    return share


def share_threads(comm: Any = None) -> int:
    """Divide the cores of each machine among its processes; returns this process's number of
    threads.

    Without this call, every process uses all cores that are available to it.

    Parameters
    ----------
    comm : mpi4py communicator, optional
        ``MPI.COMM_WORLD`` by default.

    Examples
    --------
    >>> share_threads(MPI.COMM_SELF) >= 1
    True
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    config: dict[str, Any] = show_config("dicts")
    # an mpiexec that binds processes to cores has already divided them
    own = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    here = comm.Split_type(MPI.COMM_TYPE_SHARED)
    sharing = here.allgather(own).count(own)
    here.Free()
    threads: int = max(1, config["Threads"]["available"] // sharing)
    set_num_threads(threads)
    return threads


class Shard:
    """A share of a trainer's data: each process takes one of every `size` micro-batches.

    Parameters
    ----------
    data : object
        Any object with ``batch(step)``, as for ``reformer_c.Trainer``.
    comm : mpi4py communicator, optional
        ``MPI.COMM_WORLD`` by default.

    Examples
    --------
    >>> from reformer_c.training.data import Windows
    >>> shard = Shard(Windows(np.arange(100), length=10), MPI.COMM_SELF)
    >>> shard.batch(0).shape, shard.length
    ((1, 10), 10)
    """

    def __init__(self, data: Any, comm: Any = None) -> None:
        comm = MPI.COMM_WORLD if comm is None else comm
        if not callable(getattr(data, "batch", None)):
            raise TypeError(f"data must have a method batch, got {type(data).__name__}")
        self.data, self.rank, self.size = data, comm.rank, comm.size

    def batch(self, step: int) -> Any:
        """The micro-batch of this process.

        Parameters
        ----------
        step : int
            Steps count from 0.
        """
        return self.data.batch(step * self.size + self.rank)

    def describe(self) -> dict[str, Any]:
        """Describes the data and the number of processes, which a resumed run must match."""
        describe = getattr(self.data, "describe", None)
        return {"data": describe() if describe else None, "processes": self.size}

    def __getattr__(self, name: str) -> Any:
        if name == "data":
            raise AttributeError(name)
        return getattr(self.data, name)


class DataParallel:
    """A model whose losses and gradients are averaged over all processes.

    All other attributes are the model's own. Every process gets the same gradients in each step, so
    the same optimiser keeps the weights identical.

    Parameters
    ----------
    model : ReformerModelWithLMHead
        Or any object with ``loss_and_gradients`` and ``count_targets``. Its weights are replaced by
        those of rank 0.
    comm : mpi4py communicator, optional
        ``MPI.COMM_WORLD`` by default.

    Attributes
    ----------
    rank, size : int
        The number of this process, and the number of processes.

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
            raise TypeError(f"model must have a loss and count_targets, got {model!r}")
        self.model, self.comm = model, MPI.COMM_WORLD if comm is None else comm
        self.rank, self.size = self.comm.rank, self.comm.size
        self.synchronise()

    def synchronise(self, optimizer: Any = None) -> None:
        """Copy the weights of rank 0, and the optimiser's state if given, to every process. Call it
        in all processes, for example after a ``resume`` by rank 0 alone.

        Parameters
        ----------
        optimizer : Adafactor or AdamW, optional
            The optimiser of this process.
        """
        broadcast(self.model.parameters, self.comm)
        self._agree_on_buckets(self._sides)
        if optimizer is not None:
            state = optimizer.state_dict()
            broadcast(state, self.comm)
            optimizer.load_state_dict(state)

    def loss_and_gradients(
        self, *args: Any, rng: Any = None, **arguments: Any
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Loss and gradients over the batches of all processes: each target has the same weight.

        With an integer `rng` every process draws its own dropout and rotations, reproducibly.

        Parameters
        ----------
        *args, rng, **arguments
            As in the model's own, for the batch of this process.
        """
        if rng is not None and self.rank:
            rng = random_key(draw_seed(rng), "rank", self.rank)
        undecided = [side for side in self._sides if side.config.num_buckets is None]
        weight = self.model.count_targets(*args, **arguments)
        if np.ndim(weight):
            # no weight of a process suits several means: each is divided by the count that
            # processes have on average instead
            counts = arguments.get("counts")
            counts = self.count_targets(*args, **arguments) if counts is None else counts
            arguments["counts"] = np.divide(counts, self.size)
            weight = 1
        loss, gradients = self.model.loss_and_gradients(*args, rng=rng, **arguments)
        self._agree_on_buckets(undecided)
        share = average(gradients, self.comm, weight=weight)
        total = self.comm.allreduce(loss * share if share else 0.0)
        return (total if self.comm.allreduce(weight) else float("nan")), gradients

    def count_targets(self, *args: Any, **arguments: Any) -> Any:
        """The number of targets in the batches of all processes; of several means, a list.

        Parameters
        ----------
        *args, **arguments
            As in `loss_and_gradients`.
        """
        counts = self.comm.allgather(self.model.count_targets(*args, **arguments))
        return np.sum(counts, axis=0).tolist()

    def agree(self, number: int) -> int:
        """The maximum over all processes, each of which must call it; used to agree on stopping.

        Parameters
        ----------
        number : int
            Of this process.
        """
        largest: int = self.comm.allreduce(number, op=MPI.MAX)
        return largest

    @property
    def _sides(self) -> list[Any]:
        """The models that use LSH; empty for a model of another library."""
        return list(getattr(self.model, "sides", {}).values())

    def _agree_on_buckets(self, models: Iterable[Any]) -> None:
        """Use the number of buckets that process 0 chose or loaded in every process."""
        for model in models:
            chosen = [n for n in self.comm.allgather(model.config.num_buckets) if n is not None]
            if chosen:
                model.config = replace(model.config, num_buckets=chosen[0])

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        """The model's own loss, of this process alone.

        Parameters
        ----------
        *args, **arguments
            As in the model's own.
        """
        return self.model(*args, **arguments)

    def __repr__(self) -> str:
        return f"<DataParallel: process {self.rank} of {self.size}, {self.model!r}>"

    def __getattr__(self, name: str) -> Any:
        if name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the model's attributes on the model itself, which uses them."""
        if name in ("model", "comm", "rank", "size"):
            super().__setattr__(name, value)
        else:
            setattr(self.model, name, value)


def _check_arrays(arrays: Any) -> None:
    if not isinstance(arrays, Mapping):
        raise TypeError(f"arrays must be a mapping of names to arrays, got {type(arrays).__name__}")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
            kind = type(array).__name__
            raise TypeError(f"arrays[{name!r}] must be a NumPy array without a mask, got {kind}")


def _check_alike(arrays: Mapping[str, np.ndarray], comm: Any) -> None:
    own = [(name, arrays[name].shape, str(arrays[name].dtype)) for name in sorted(arrays)]
    for rank, theirs in enumerate(comm.allgather(own)):
        if theirs != own:
            differ = sorted({*own} ^ {*theirs})[0]
            raise ValueError(
                f"arrays must be the same in every process, got {differ} in only one of the "
                f"processes {comm.rank} and {rank}"
            )
