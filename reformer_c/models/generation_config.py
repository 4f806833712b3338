"""The options of ``generate``, and the generation_config.json of a model folder."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import numpy as np

from ..checks import NamedAttributes, did_you_mean, flag, integer, refuse_unknown
from ..ops.quantized import STORAGES
from .json_file import JsonFile

__all__ = ["GENERATION_CONFIG", "GenerationConfig", "flat"]

GENERATION_CONFIG = "generation_config.json"

# integers, and the minimum of each
COUNTS = {
    "max_length": 1, "max_new_tokens": 0, "min_length": 0, "min_new_tokens": 0, "num_beams": 1,
    "top_k": 0, "no_repeat_ngram_size": 0, "num_return_sequences": 1, "cache_length": 1,
    "cache_drop": 1,
}  # fmt: skip
BELOW_ONE = math.nextafter(1.0, 0.0)
# numbers: the bounds, whether the lower one is excluded, and the range in words
REALS: dict[str, tuple[float, float, bool, str]] = {
    "temperature": (0.0, math.inf, True, "a number > 0"),
    "repetition_penalty": (0.0, math.inf, True, "a number > 0"),
    "top_p": (0.0, 1.0, True, "a number in (0, 1]"),
    "typical_p": (0.0, 1.0, True, "a number in (0, 1]"),
    "min_p": (0.0, 1.0, False, "a number in [0, 1]"),
    "epsilon_cutoff": (0.0, BELOW_ONE, False, "a number in [0, 1)"),
    "eta_cutoff": (0.0, BELOW_ONE, False, "a number in [0, 1)"),
    "length_penalty": (-math.inf, math.inf, False, "a finite number"),
}
FLAGS = ("do_sample", "renormalize_logits", "use_cache")
# options that are one token, and options that may be several
TOKEN = ("pad_token_id", "bos_token_id", "decoder_start_token_id", "forced_bos_token_id")
TOKENS = ("eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")
# special tokens: a checkpoint without one may give an id outside the vocabulary
SPECIAL = {"eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id"}

# what keys and values may be rounded to in the cache
CACHE_DTYPES = ("bfloat16",)

# None, typed so that it can be the value of any option
UNSET: Any = None
# defaults: those of transformers, except for the length
DEFAULTS: dict[str, Any] = {
    "max_new_tokens": 100, "min_new_tokens": 0, "do_sample": False, "temperature": 1.0,
    "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "min_p": 0.0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "renormalize_logits": False, "num_beams": 1, "length_penalty": 1.0, "early_stopping": False,
    "num_return_sequences": 1, "use_cache": True,
}  # fmt: skip

# unsupported options of transformers that would change the result, and the values (None too) that
# turn them off
UNSUPPORTED: dict[str, Any] = {
    "assistant_early_exit": None, "constraints": None, "diversity_penalty": 0.0,
    "dola_layers": None, "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None, "force_words_ids": None, "forced_decoder_ids": None,
    "guidance_scale": 1, "max_time": None, "num_beam_groups": 1, "output_attentions": False,
    "output_hidden_states": False, "output_logits": False, "output_scores": False,
    "penalty_alpha": 0.0, "prompt_lookup_num_tokens": None, "remove_invalid_values": False,
    "return_dict_in_generate": False, "sequence_bias": None, "stop_strings": None,
    "token_healing": False, "top_h": None, "use_mtp": False, "watermarking_config": None,
}  # fmt: skip
# options of transformers that do not change the result, and resemble some that do
IGNORED = {
    "cache_config", "cache_implementation", "max_cache_len", "max_matching_ngram_size",
}  # fmt: skip


@dataclass(init=False, repr=False)
class GenerationConfig(NamedAttributes, JsonFile):
    """The options of ``generate``, under the names of Hugging Face's ``GenerationConfig``.

    An option is taken from the first of these that sets it, where None means not set: the arguments
    of ``generate``, its `generation_config`, the model's ``generation_config``, the defaults.
    Assignments are checked. ``generate`` documents the options.

    Parameters
    ----------
    **options
        The fields. `extra` is a dictionary of other keys of a generation_config.json.

    Raises
    ------
    TypeError, ValueError
        A value is invalid.
    AttributeError
        There is no field of that name.

    Examples
    --------
    >>> config = GenerationConfig(do_sample=True, top_p=0.9)
    >>> config.temperature = 0.7
    >>> config
    GenerationConfig(do_sample=True, temperature=0.7, top_p=0.9)
    >>> config.temprature = 0.7
    Traceback (most recent call last):
    AttributeError: temprature: GenerationConfig has no such field; did you mean temperature?
    """

    _file_name = GENERATION_CONFIG

    max_length: int | None = None
    max_new_tokens: int = UNSET
    min_length: int | None = None
    min_new_tokens: int = UNSET
    do_sample: bool = UNSET
    temperature: float = UNSET
    top_k: int = UNSET
    top_p: float = UNSET
    min_p: float = UNSET
    typical_p: float = UNSET
    epsilon_cutoff: float = UNSET
    eta_cutoff: float = UNSET
    repetition_penalty: float = UNSET
    no_repeat_ngram_size: int = UNSET
    bad_words_ids: Sequence[Sequence[int]] | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    renormalize_logits: bool = UNSET
    num_beams: int = UNSET
    length_penalty: float = UNSET
    early_stopping: bool | str = UNSET
    num_return_sequences: int = UNSET
    use_cache: bool = UNSET
    cache_length: int | None = None
    cache_drop: int | None = None
    weights: str | None = None
    cache_dtype: str | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    decoder_start_token_id: int | None = None
    extra: dict[str, Any] | None = None

    def __init__(self, **options: Any) -> None:
        names = [f.name for f in fields(self)]
        refuse_unknown(options, names, type(self).__name__)
        for name in names:
            setattr(self, name, options.get(name))

    def __setattr__(self, name: str, value: Any) -> None:
        names = [f.name for f in fields(self)]
        if name not in names:
            raise AttributeError(
                f"{name}: {type(self).__name__} has no such field{did_you_mean(name, names)}"
            )
        object.__setattr__(self, name, value if value is None else _checked(name, value))

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self._set().items())
        return f"{type(self).__name__}({given})"

    def _set(self) -> dict[str, Any]:
        """The fields that are set."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    # ---- files ----

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationConfig:
        """The options of a generation_config.json; other keys are kept in `extra`, and so is a
        temperature of 0 without `do_sample`, which some models have.

        Warns of options of transformers that are set and not supported here, and of keys that
        resemble an option.

        Parameters
        ----------
        values : mapping of str to object
            The options by name.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"values must be a dictionary, got {type(values).__name__}")
        greedy = values.get("temperature") == 0 and not values.get("do_sample")
        unused = {"temperature"} if greedy else set()
        names = [f.name for f in fields(cls) if f.name not in {"extra"} | unused]
        extra = {name: value for name, value in values.items() if name not in names}
        _warn_of_unsupported(GENERATION_CONFIG, extra)
        for name in extra.keys() - UNSUPPORTED.keys() - IGNORED - unused:
            if near := did_you_mean(name, names):
                warnings.warn(f"{GENERATION_CONFIG}: unknown option {name}{near}", stacklevel=2)
        known = {name: value for name, value in values.items() if name in names}
        return cls(**known, extra=extra or None)

    def to_dict(self) -> dict[str, Any]:
        """The contents of a generation_config.json that `from_dict` and transformers read.

        Examples
        --------
        >>> import tempfile
        >>> config = GenerationConfig(max_new_tokens=7, extra={"note": "short"})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config.to_json(folder)
        ...     GenerationConfig.from_json(folder) == config
        True
        """
        return (self.extra or {}) | {k: v for k, v in self._set().items() if k != "extra"}

    @classmethod
    def from_model_config(cls, values: Mapping[str, Any]) -> GenerationConfig:
        """The options in a config.json: special tokens, `use_cache`, and all options that older
        versions of transformers stored there.

        Parameters
        ----------
        values : mapping of str to object
            The contents of the config.json.
        """
        names = {f.name for f in fields(cls)} - {"extra"}
        # in a config.json, these are defaults of a model's call
        own = ("output_attentions", "output_hidden_states")
        _warn_of_unsupported("config.json", {k: v for k, v in values.items() if k not in own})
        return cls(**{name: value for name, value in values.items() if name in names})

    # ---- options of a call, over those of a model ----

    def over(self, lower: GenerationConfig) -> GenerationConfig:
        """These options; those not set are taken from `lower`.

        Parameters
        ----------
        lower : GenerationConfig
            Options for what is not set here.
        """
        return type(self)(**(lower._set() | self._set()))

    def token(self, name: str, call: Mapping[str, Any], v: int) -> int | None:
        """A special token, from a call or these options; None if it is outside the vocabulary.

        Parameters
        ----------
        name : str
            The option, such as "eos_token_id".
        call : mapping of str to object
            Arguments of the call.
        v : int
            Vocabulary size.
        """
        if call.get(name) is None:
            return None if name in call else _inside(getattr(self, name), v)
        given = type(self)(**{name: call[name]})
        given._check_tokens(v)
        token: int | None = getattr(given, name)
        return token

    def resolved(self, call: Mapping[str, Any], t: int, room: int, v: int) -> GenerationConfig:
        """All options of a call, with defaults; None remains only where it is a meaningful value.

        Parameters
        ----------
        call : mapping of str to object
            Arguments of the call; None turns off an option that is set here.
        t : int
            Length of the prompts, including padding.
        room : int
            Number of new tokens for which the model has positions.
        v : int
            Vocabulary size.
        """
        given = type(self)(**call)
        given._check_tokens(v)
        lower = self._set() | dict.fromkeys(call)
        for name in SPECIAL:
            if lower.get(name) is not None:
                lower[name] = _inside(lower[name], v)
        # a length given in the call overrides the folder's, whether or not it counts the prompt
        for one, other in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            if call.get(one) is not None and call.get(other) is not None:
                warnings.warn(f"{one}: {other}={call[other]} overrides it", stacklevel=4)
            for name in (one, other):
                if call.get(name) is not None:
                    lower |= {one: None, other: None}
        if "cache_length" in call:  # the folder's number belongs to another length
            lower["cache_drop"] = None
        found = given.over(type(self)(**lower))
        found._check_tokens(v)
        if found.pad_token_id is None and (ends := flat(found.eos_token_id)):
            found.pad_token_id = ends[0]
        found._count_new_tokens(call, t, room)
        off = {"top_k": 0}  # None in the call turns an option off
        for name, value in DEFAULTS.items():
            if getattr(found, name) is None:
                setattr(found, name, off.get(name, value) if name in call else value)
        if found.cache_length is not None and found.cache_drop is None:
            found.cache_drop = max(1, found.cache_length // 8)
        found._check_together()
        return found

    def _count_new_tokens(self, call: Mapping[str, Any], t: int, room: int) -> None:
        """Set max_new_tokens and min_new_tokens, from max_length, min_length or the defaults."""
        given, limit = "max_new_tokens", room
        if self.max_new_tokens is None and self.max_length is not None:
            given, limit = "max_length", room + t
            if self.max_length <= t:
                raise ValueError(
                    f"max_length must be more than the prompt's {t} tokens, got {self.max_length}"
                )
            self.max_new_tokens = self.max_length - t
        if self.max_new_tokens is None:
            self.max_new_tokens = max(1, min(DEFAULTS["max_new_tokens"], room))
        if self.max_new_tokens > room:
            raise ValueError(
                f"{given} must be at most {limit} (positions), got {getattr(self, given)}"
            )
        if self.min_new_tokens is None:
            self.min_new_tokens = max(0, (self.min_length or 0) - t)
        if self.min_new_tokens > self.max_new_tokens:
            longest = f"max_new_tokens={self.max_new_tokens}"
            total = f"{t + self.max_new_tokens}, the prompt and {longest}"
            for name, maximum in (("min_new_tokens", longest), ("min_length", total)):
                if call.get(name) is not None:
                    raise ValueError(f"{name} must be at most {maximum}, got {call[name]}")
            self.min_new_tokens = self.max_new_tokens

    def _check_together(self) -> None:
        length, drop = self.cache_length, self.cache_drop
        if length is None and drop is not None:
            raise ValueError(f"cache_drop must be None without cache_length, got {drop}")
        if length is not None and drop is not None and drop > length:
            raise ValueError(f"cache_drop must be at most cache_length={length}, got {drop}")
        beams, texts = self.num_beams or 1, self.num_return_sequences or 1
        if texts > beams and (beams > 1 or not self.do_sample):
            raise ValueError(
                f"num_return_sequences must be at most num_beams={beams}"
                f"{'' if beams > 1 else ' without do_sample'}, got {texts}"
            )
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            forced, suppressed = flat(getattr(self, name)), flat(self.suppress_tokens)
            if forced and set(forced) <= set(suppressed):
                raise ValueError(f"{name} must not be in suppress_tokens, got {forced}")

    def _check_tokens(self, v: int) -> None:
        """Raise ValueError where a token is not in [0, v)."""
        for name in (*TOKEN, *TOKENS, "bad_words_ids"):
            tokens = np.ravel(flat(getattr(self, name)))
            for token in tokens[(tokens < 0) | (tokens >= v)]:
                raise ValueError(f"{name} must be in [0, {v}), got {token}")


def _warn_of_unsupported(source: str, values: Mapping[str, Any]) -> None:
    for name in UNSUPPORTED.keys() & values.keys():
        if values[name] is not None and values[name] != UNSUPPORTED[name]:
            warnings.warn(
                f"{source}: {name}={values[name]!r} is not supported and ignored",
                stacklevel=3,
            )


def flat(value: Any) -> list[int]:
    """Flatten the value of a field to a list of integers; None gives an empty list."""
    if value is None:
        return []
    if not isinstance(value, list):
        return [value]
    return [token for part in value for token in flat(part)]


def _inside(value: Any, v: int) -> Any:
    """Keep the tokens that are in the vocabulary; None if there are none."""
    inside = [token for token in flat(value) if 0 <= token < v]
    return (inside if isinstance(value, list) else inside[0]) if inside else None


def _checked(name: str, value: Any) -> Any:
    """Check a field's value and convert it to JSON's types."""
    if name in COUNTS:
        return integer(name, value, COUNTS[name])
    if name in REALS:
        return _real(name, value, *REALS[name])
    if name in FLAGS:
        return flag(name, value)
    if name in TOKEN:
        return integer(name, value)
    if name in TOKENS:
        several = isinstance(value, Sequence) or np.ndim(value) > 0
        return _token_list(name, value) if several else integer(name, value)
    if name == "bad_words_ids":
        return _words(name, value)
    if name == "early_stopping":
        if isinstance(value, str) and value != "never":
            raise ValueError(f"{name} must be True, False or 'never', got {value!r}")
        return value if isinstance(value, str) else flag(name, value)
    if name == "weights":
        if value not in STORAGES:
            raise ValueError(f"{name} must be 'int8', 'bfloat16' or None, got {value!r}")
        return value
    if name == "cache_dtype":
        if value not in CACHE_DTYPES:
            raise ValueError(f"{name} must be 'bfloat16' or None, got {value!r}")
        return value
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be a dictionary, got {type(value).__name__}")
    return dict(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str)


def _token_list(name: str, value: Any) -> list[int]:
    if not _is_list(value):
        raise TypeError(f"{name} must be a list of integers, got {value!r}")
    return [integer(name, token) for token in value]


def _words(name: str, value: Any) -> list[list[int]]:
    if not _is_list(value) or not all(map(_is_list, value)):
        raise TypeError(f"{name} must be a list of lists of integers, got {value!r}")
    words = [_token_list(name, word) for word in value]
    if not all(words):
        raise ValueError(f"{name} must have at least one token in each word, got []")
    return words


def _real(
    name: str, value: Any, minimum: float, maximum: float, open_below: bool, expected: str
) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    real = float(value)
    inside = math.isfinite(real) and minimum <= real <= maximum
    if not inside or (open_below and real == minimum):
        raise ValueError(f"{name} must be {expected}, got {real!r}")
    return real
