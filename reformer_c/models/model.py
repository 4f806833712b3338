"""The Reformer models, under Hugging Face's names and with their numbers."""

from __future__ import annotations

from typing import ClassVar

import numpy as np  # noqa: F401 (for the examples)

from .calls import ReformerWithLoss
from .config import ReformerConfig  # noqa: F401 (for the examples)
from .generation import Generation
from .heads import Classifier, Head, LanguageModel, QuestionAnswering
from .outputs import ReformerOutput
from .own_heads import OwnHeads

__all__ = [
    "ReformerForMaskedLM",
    "ReformerForQuestionAnswering",
    "ReformerForSequenceClassification",
    "ReformerModel",
    "ReformerModelWithLMHead",
    "ReformerOutput",
]


class ReformerModel(OwnHeads):
    """The bare Reformer (Kitaev et al. 2020): its output is `last_hidden_state` (b, t, 2 c).

    `forward` and `backward`, or `loss_and_gradients` with a function of the final states, train it
    with a head of your own.

    Parameters
    ----------
    config : ReformerConfig
    rng : int, numpy Generator or None
        Draws the initial weights; an integer reproduces them.
    dtype : float32 or float64, "bfloat16" or float16
        Of the weights and results; with half precision results are float32, and training is
        refused.

    Examples
    --------
    >>> config = ReformerConfig(attn_layers=["local", "lsh"], num_attention_heads=2)
    >>> model = ReformerModel(config, rng=0)
    >>> model(np.arange(100)[None], rng=0).last_hidden_state.shape
    (1, 100, 512)
    """

    prefix = ""
    head = Head()


class ReformerModelWithLMHead(Generation, ReformerWithLoss):
    """A causal language model: logits (b, t, v) for the next token.

    `labels` (b, t) are the tokens themselves; they are shifted here, as in Hugging Face's model.
    A label of -100 is ignored by the loss. `attention_mask` hides padding from attention, not from
    the loss: give padding the label -100. ``lm_head.bias`` is added to the logits, as in the
    original and in transformers except versions 5.0 to 5.23; ``config.apply_lm_head_bias=False``
    leaves it out.

    Parameters
    ----------
    config : ReformerConfig
    rng : int, numpy Generator or None
        Draws the initial weights; an integer reproduces them.
    dtype : float32 or float64, "bfloat16" or float16
        Of the weights and results; with half precision results are float32, and training is
        refused.

    Examples
    --------
    >>> config = ReformerConfig(
    ...     attn_layers=["local", "lsh"], num_attention_heads=2, is_decoder=True
    ... )
    >>> model = ReformerModelWithLMHead(config, rng=0)
    >>> ids = np.arange(100)[None]
    >>> loss, gradients = model.loss_and_gradients(ids, labels=ids, rng=0)
    >>> 5.5 < loss < 6.0, len(gradients) == len(model.parameters)
    (True, True)
    >>> model.generate(ids, max_new_tokens=5, rng=0).shape
    (1, 105)
    """

    head: ClassVar[LanguageModel] = LanguageModel(causal=True)  # pyright: ignore


class ReformerForMaskedLM(ReformerWithLoss):
    """A bidirectional language model: logits (b, t, v) for the tokens at their own positions.

    `labels` (b, t); -100, usually at the tokens that were not replaced, is ignored.

    Parameters
    ----------
    config : ReformerConfig
    rng : int, numpy Generator or None
        Draws the initial weights; an integer reproduces them.
    dtype : float32 or float64, "bfloat16" or float16
        Of the weights and results; with half precision results are float32, and training is
        refused.

    Examples
    --------
    >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=2)
    >>> model = ReformerForMaskedLM(config, rng=0)
    >>> model(np.arange(10)[None]).logits.shape
    (1, 10, 320)
    """

    head = LanguageModel(causal=False)


class ReformerForSequenceClassification(ReformerWithLoss):
    """A classifier of whole texts, from the state of the first token: logits (b, num_labels).

    `labels` depend on ``config.problem_type``: classes (b,) for "single_label_classification",
    zeros and ones (b, num_labels) for "multi_label_classification", numbers (b,) or
    (b, num_labels) for "regression". None means regression if num_labels is 1; otherwise the
    labels' dtype decides, and integers are classes.

    Parameters
    ----------
    config : ReformerConfig
    rng : int, numpy Generator or None
        Draws the initial weights; an integer reproduces them.
    dtype : float32 or float64, "bfloat16" or float16
        Of the weights and results; with half precision results are float32, and training is
        refused.

    Examples
    --------
    >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=2, num_labels=3)
    >>> model = ReformerForSequenceClassification(config, rng=0)
    >>> output = model(np.arange(20).reshape(2, 10), labels=[0, 2])
    >>> output.logits.shape, 0.5 < output.loss < 1.5
    ((2, 3), True)
    """

    head = Classifier()


class ReformerForQuestionAnswering(ReformerWithLoss):
    """Finds the start and the end of an answer in a text: start_logits and end_logits (b, t).

    `start_positions` and `end_positions` are integers (b,). Positions beyond the end of the text
    are ignored and negative ones count as its first token, as in Hugging Face's model. The loss is
    the mean of two means, over the starts and over the ends that are left.

    `counts` (2,), optional, are the divisors of these two sums, in place of the numbers of starts
    and of ends in this batch: with those of a larger batch, from ``count_targets``, the losses and
    gradients of its parts add up to those of the whole.

    Parameters
    ----------
    config : ReformerConfig
    rng : int, numpy Generator or None
        Draws the initial weights; an integer reproduces them.
    dtype : float32 or float64, "bfloat16" or float16
        Of the weights and results; with half precision results are float32, and training is
        refused.

    Examples
    --------
    >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=2)
    >>> model = ReformerForQuestionAnswering(config, rng=0)
    >>> output = model(np.arange(10)[None], start_positions=[2], end_positions=[4])
    >>> output.start_logits.shape, 2.0 < output.loss < 2.6
    ((1, 10), True)
    """

    head = QuestionAnswering()
