"""The Reformer on a CPU: LSH attention, reversible layers and chunked feed-forward, in C.

NumPy in, NumPy out. ``reformer_c.ops`` has every operation, forward and backward; models, text and
training are loaded when they are first asked for.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from .openmp import loading_openmp as _loading_openmp

with _loading_openmp():
    from . import _core

from . import ops
from .ops import *  # noqa: F403
from .precision import get_matmul_precision, matmul_precision, set_matmul_precision
from .runtime import (
    get_num_threads,
    num_threads,
    release_memory,
    reuse_memory,
    set_num_threads,
    show_config,
)

if TYPE_CHECKING:
    from . import plot
    from .config import ReformerConfig
    from .encoder_decoder import ReformerEncoderDecoder
    from .generation_config import GenerationConfig
    from .model import (
        ReformerForMaskedLM,
        ReformerForQuestionAnswering,
        ReformerForSequenceClassification,
        ReformerModel,
        ReformerModelWithLMHead,
    )
    from .optim import Adafactor, AdamW, clip_gradients, schedules
    from .report import lsh_report
    from .reversible import reversible_backward, reversible_forward
    from .subwords import ReformerTokenizer, ReformerTokenizerFast
    from .tokenizer import ByteTokenizer
    from .train import Trainer

# names that are loaded at their first use, and the modules that they come from
_LAZY = {
    "reversible_backward": "reversible",
    "reversible_forward": "reversible",
    "GenerationConfig": "generation_config",
    "ReformerConfig": "config",
    "ReformerEncoderDecoder": "encoder_decoder",
    "ReformerForMaskedLM": "model",
    "ReformerForQuestionAnswering": "model",
    "ReformerForSequenceClassification": "model",
    "ReformerModel": "model",
    "ReformerModelWithLMHead": "model",
    "ByteTokenizer": "tokenizer",
    "ReformerTokenizer": "subwords",
    "ReformerTokenizerFast": "subwords",
    "Adafactor": "optim",
    "AdamW": "optim",
    "clip_gradients": "optim",
    "schedules": "optim",
    "Trainer": "train",
    "lsh_report": "report",
}

__all__ = [
    *ops.__all__,
    "get_matmul_precision",
    "get_num_threads",
    "matmul_precision",
    "num_threads",
    "ops",
    "plot",
    "release_memory",
    "reuse_memory",
    "set_matmul_precision",
    "set_num_threads",
    "show_config",
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    if name == "plot":
        return _import_module(".plot", __name__)
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_import_module(f".{_LAZY[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
