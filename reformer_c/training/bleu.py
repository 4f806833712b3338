"""BLEU of translations, by sacrebleu (Post 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from ..checks import requires_extra

__all__ = ["bleu", "check_bleu"]


def check_bleu() -> None:
    """Raise ImportError if sacrebleu (extra ``bleu``) is not installed."""
    if find_spec("sacrebleu") is None:
        raise requires_extra("BLEU", "sacrebleu", "bleu")


def bleu(translations: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """BLEU of a corpus, from 0 to 100, and sacrebleu's signature of how it is computed.

    Parameters
    ----------
    translations : sequence of str
        Without tokenization.
    references : sequence of str
        One for each.

    Raises
    ------
    ImportError
        The sacrebleu library is not installed (extra ``bleu``).
    ValueError
        There is another number of references.
    """
    if len(references) != len(translations):
        raise ValueError(
            f"references must be {len(translations)} texts, as translations, got {len(references)}"
        )
    check_bleu()
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    score = metric.corpus_score(list(translations), [list(references)]).score
    return score, str(metric.get_signature())
