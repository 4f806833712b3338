"""The Reformer on a CPU: LSH attention, reversible layers and chunked feed-forward, in C.

NumPy in, NumPy out. ``reformer_c.ops`` has every operation, forward and backward; models, text and
training are loaded when they are first used.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from .openmp import loading_openmp as _loading_openmp

with _loading_openmp():
    from . import _core

# packages that are loaded later: for a moment at the end of a package's import, another thread's
# import of a module in it fails
from . import files, layers, models, ops, text, tools, training
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
    from .layers.reversible import reversible_backward, reversible_forward
    from .models.config import ReformerConfig
    from .models.encoder_decoder import ReformerEncoderDecoder
    from .models.generation_config import GenerationConfig
    from .models.model import (
        ReformerForMaskedLM,
        ReformerForQuestionAnswering,
        ReformerForSequenceClassification,
        ReformerModel,
        ReformerModelWithLMHead,
    )
    from .text.byte_tokenizer import ByteTokenizer
    from .text.subwords import ReformerTokenizer, ReformerTokenizerFast
    from .tools import plot
    from .tools.report import lsh_report
    from .tools.tuning import tune_lsh
    from .training import data
    from .training.gradients import clip_gradients
    from .training.optim import Adafactor, AdamW
    from .training.schedules import schedules
    from .training.train import Trainer

# modules that are loaded at their first use
_LAZY_MODULES = {"data": "training.data", "plot": "tools.plot"}
# names that are loaded at their first use, and the modules that they come from
_LAZY = {
    "reversible_backward": "layers.reversible",
    "reversible_forward": "layers.reversible",
    "GenerationConfig": "models.generation_config",
    "ReformerConfig": "models.config",
    "ReformerEncoderDecoder": "models.encoder_decoder",
    "ReformerForMaskedLM": "models.model",
    "ReformerForQuestionAnswering": "models.model",
    "ReformerForSequenceClassification": "models.model",
    "ReformerModel": "models.model",
    "ReformerModelWithLMHead": "models.model",
    "ByteTokenizer": "text.byte_tokenizer",
    "ReformerTokenizer": "text.subwords",
    "ReformerTokenizerFast": "text.subwords",
    "Adafactor": "training.optim",
    "AdamW": "training.optim",
    "clip_gradients": "training.gradients",
    "schedules": "training.schedules",
    "Trainer": "training.train",
    "lsh_report": "tools.report",
    "tune_lsh": "tools.tuning",
}

__all__ = [
    *ops.__all__,
    "data",
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
    if name in _LAZY_MODULES:
        return _import_module(f".{_LAZY_MODULES[name]}", __name__)
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_import_module(f".{_LAZY[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
