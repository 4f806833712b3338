"""Schemas and signatures of the operators, derived from those of the operations on arrays."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from ..checks import refuse_unknown

__all__ = ["arguments_of", "operator", "options_of", "schema_of"]

Function = TypeVar("Function", bound=Callable[..., Any])

# an annotation, and the type in a schema; parameters of other types are not an operator's
TYPES = {
    "np.ndarray": "Tensor", "np.ndarray | None": "Tensor?", "int": "int", "bool": "bool",
    "float": "float", "str": "str", "int | None": "int?", "float | None": "float?",
    "str | None": "str?", "int | Sequence[int] | None": "int[]?",
    "np.ndarray | str | None": "Tensor?",
}  # fmt: skip


def arguments_of(op: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of an operation that PyTorch does not decide."""
    parameters = inspect.signature(op).parameters.values()
    return [p for p in parameters if p.name not in ("out", "workers", "lse")]


def schema_of(op: Callable[..., Any]) -> str:
    """The arguments of an operation's operator: tensors, then options by keyword.

    Examples
    --------
    >>> from .. import ops
    >>> print(schema_of(ops.full_attention))
    Tensor q, Tensor? k, Tensor v, Tensor? attention_mask, *, bool is_causal, float? scale=None, \
float? softcap=None, bool shared_qk, float dropout, int dropout_key, str? matmul_precision=None
    """
    typed = [(TYPES.get(str(p.annotation)), p.name) for p in arguments_of(op)]
    tensors = [f"{kind} {name}" for kind, name in typed if kind in ("Tensor", "Tensor?")]
    options = [
        f"{kind} {name}" + ("=None" if kind.endswith("?") else "")
        for kind, name in typed
        if kind and not kind.startswith("Tensor")
    ]
    return ", ".join([*tensors, "*", *options])


def operator(
    schema: str,
    forward: Callable[..., Any],
    fake: Callable[..., Any],
    setup: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Any:
    """Register ``reformer_c::name``, on the CPU."""
    name, _, arguments = schema.partition("(")
    registered = torch.library.custom_op(
        f"reformer_c::{name}", forward, mutates_args=(), device_types="cpu", schema=f"({arguments}"
    )
    registered.register_fake(fake)
    if backward is not None:
        registered.register_autograd(backward, setup_context=setup)
    return registered


def options_of(op: Callable[..., Any]) -> Callable[[Function], Function]:
    """Decorate a function of tensors that takes the options of `op`, an operation on arrays.

    The function is called with every option: those that are not given have the defaults of `op`,
    and the dropout key is None. Its signature is that of `op`, of tensors, and its documentation
    names the options in place of ``**options``.

    Examples
    --------
    >>> from .. import ops
    >>> @options_of(ops.feed_forward)
    ... def feed_forward(x, w1, b1, w2, b2, **options):
    ...     return options
    >>> feed_forward(*5 * [None], dropout=0.5)["dropout_key"] is None
    True
    >>> feed_forward(*5 * [None], droput=0.5)
    Traceback (most recent call last):
    TypeError: droput: feed_forward has no such argument; did you mean dropout?
    """
    parameters = [
        p.replace(annotation=str(p.annotation).replace("np.ndarray", "torch.Tensor"))
        for p in arguments_of(op)
    ]
    names = [p.name for p in parameters]
    key = names.index("dropout_key")
    parameters[key] = parameters[key].replace(default=None, annotation="int | None")
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*tensors: Any, **options: Any) -> Any:
            refuse_unknown(options, names, function.__name__)
            # not defaults | options, which torch.compile does not trace in PyTorch 2.6
            return function(*tensors, **{**defaults, **options})

        documented = inspect.getdoc(function) or ""
        entry = r"^(\w+, )*{}(, \w+)*( :.*)?$"
        others = [x for x in names if not re.search(entry.format(x), documented, re.MULTILINE)]
        call.__doc__ = documented.replace("**options\n", f"{', '.join(others)}\n")
        returns = inspect.signature(function).return_annotation
        call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            parameters, return_annotation=returns
        )
        return cast(Function, call)

    return decorate
