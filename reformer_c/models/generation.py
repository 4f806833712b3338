"""Generation with a language model: checks the arguments of ``generate`` and runs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..checks import names_keywords, refuse_unknown
from ..layers.attention import Observer
from ..layers.parameters import StepWeights
from ..layers.randomness import draw_seed, random_key
from .body import Pass
from .config import ReformerConfig
from .decoder import Decoder, cache_bytes, num_buckets_of
from .generation_config import CACHE_DTYPES, GENERATION_CONFIG, GenerationConfig
from .heads import LanguageModel
from .inputs import Call, as_rows, check_ids, check_inputs, check_mask
from .rules import Rules
from .sources import Grouped, LogitsSource, UncachedSource
from .strategies import beam_search, stream_tokens
from .weights import Weighted

__all__ = ["Generation"]

# arguments of `generate` in addition to the options of a GenerationConfig
FUNCTIONS = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")
ARGUMENTS = ("input_ids", "attention_mask", "generation_config", "num_hashes", "rotations", "rng")
GENERATION_FIELDS = GenerationConfig.__dataclass_fields__.keys() - {"extra"}
OPTIONS = [*ARGUMENTS, *FUNCTIONS, *GENERATION_FIELDS]


class Prepared(NamedTuple):
    """A call of `generate`, after all checks."""

    ids: np.ndarray
    # the rows of ids, without padding
    prompts: list[np.ndarray]
    source: LogitsSource
    rules: Rules
    # a random generator for each text
    draws: list[np.random.Generator]


class Generation(Weighted):
    """A language model's `generate` and `stream`, and their default options."""

    head: ClassVar[LanguageModel]  # pyright: ignore
    _generation_config: GenerationConfig

    def _allocate(self, config: ReformerConfig, dtype: Any) -> None:
        super()._allocate(config, dtype)
        self.generation_config = GenerationConfig.from_model_config(config.extra | vars(config))

    @property
    def generation_config(self) -> GenerationConfig:
        """The options that `generate` has by default: edit its fields, or assign another."""
        return self._generation_config

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:
        self._generation_config = _options("generation_config", config)

    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        generation_config: GenerationConfig | None = None,
        num_hashes: int | None = None,
        rotations: Sequence[np.ndarray] | None = None,
        rng: Any = None,
        streamer: Callable[[np.ndarray], Any] | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Continue texts, token by token: greedily, by sampling, or by beam search.

        The prompts are processed by one forward pass. Each further token attends to its bucket and
        window only, so its cost does not depend on the length of the text;
        `reformer_c.models.decoder` describes how the result differs from a forward pass over the
        text so far. Each row is computed as if it were alone, without its padding: its rotations,
        number of buckets and samples depend only on its prompt and `rng`. If ``config.num_buckets``
        is None, the number is chosen from the prompt's length and does not change.

        An option that is not given has the value in `generation_config`, else the value in the
        model's ``generation_config``, else the default listed here. None turns an option off.

        Parameters
        ----------
        input_ids : array_like of int, (b, t) or (t,)
            The prompts. An empty one is replaced by the `bos_token_id`, or by the pad token if that
            is None; this token is not part of the result. Without `input_ids` there is one prompt,
            the `bos_token_id`.
        attention_mask : array_like, (b, t) or (t,), optional
            Nonzero for a real token: prompts may have several lengths and be padded on any side.
        generation_config : GenerationConfig, optional
            Options for several calls.
        num_hashes, rotations
            As in a call; rotations must fit the number of buckets of the prompts.
        rng : int, numpy Generator or None
            Draws rotations and samples; an integer reproduces them.
        streamer : callable, optional
            Called with the new tokens (b * num_return_sequences,) of each step; not available in
            beam search.
        **options
            The other parameters.

        Returns
        -------
        ndarray of int64, (b * num_return_sequences, t + new)
            The prompts, unchanged, and the new tokens.

        Other Parameters
        ----------------
        max_new_tokens : int, 100
            Must fit ``config.num_positions`` together with the prompt; the default is reduced to
            fit.
        max_length : int, optional
            The same including the prompt and its padding; `max_new_tokens` takes precedence.
        min_new_tokens, min_length : int, 0
            `eos_token_id` is not chosen before this many tokens.
        do_sample : bool, False
            Sample from the distribution. False chooses the most probable token; the options from
            temperature to eta_cutoff then have no effect.
        temperature : float, 1.0
            Divides the logits, > 0.
        top_k : int, 50
            Sample from the k most probable tokens; 0: from all.
        top_p : float, 1.0
            Sample from the most probable tokens whose total probability reaches this, in (0, 1].
        min_p : float, 0.0
            Sample from the tokens whose probability is at least this share of the largest.
        typical_p : float, 1.0
            Sample from the tokens whose information is closest to the entropy and whose total
            probability reaches this, in (0, 1].
        epsilon_cutoff, eta_cutoff : float, 0.0
            Sample from the tokens of at least this probability; eta_cutoff is lowered if the
            entropy is high: see `reformer_c.models.sampling.probabilities`.
        repetition_penalty : float, 1.0
            Divides positive logits, and multiplies negative ones, of tokens that are in the text,
            > 0 (Keskar et al. 2019, section 4.1).
        no_repeat_ngram_size : int, 0
            No n-gram of this size occurs twice in a text.
        bad_words_ids : list of lists of int, optional
            Sequences of tokens that are not generated.
        suppress_tokens, begin_suppress_tokens : list of int, optional
            Tokens that are never chosen, and that are not chosen as the first new token.
        forced_bos_token_id, forced_eos_token_id : int, optional
            The token after a prompt of one token, and the last of `max_new_tokens`.
        renormalize_logits : bool, False
            Normalise the processed logits of a beam to log-probabilities again.
        num_beams : int, 1
            More than 1: beam search with this many beams; with do_sample, continuations are sampled
            without replacement.
        length_penalty : float, 1.0
            A beam's score is divided by the number of its new tokens to this power.
        early_stopping : bool or "never", False
            True stops a search after `num_beams` finished texts; False, when no beam can improve
            on them at its present length; "never", when none can at any length.
        num_return_sequences : int, 1
            Texts per prompt, in adjacent rows: samples, or the n best of `num_beams`.
        eos_token_id : int or sequence of int, optional
            A row stops at any of these ids; generation stops when every row has.
        pad_token_id : int, optional
            Fills a row after its end; by default the first `eos_token_id`.
        bos_token_id, decoder_start_token_id : int, optional
            The first token of a prompt without tokens, and of a `ReformerEncoderDecoder`'s texts.
        use_cache : bool, True
            False computes every token by a forward pass over all tokens before it.
        cache_length : int, optional
            The most tokens of a text that its layers remember, so that a text of any length takes
            bounded memory: when it is longer, the oldest are forgotten, and what is left is
            attended to as if the text began there, with unchanged positions. Local layers remember
            their window. By default nothing is forgotten.
        cache_drop : int, an eighth of cache_length
            How many tokens are forgotten at once, at most cache_length.
        weights : {"int8", "bfloat16"}, optional
            Quantize the weight matrices of the steps after the prompts (see `ops.quantize`). These
            steps read a quarter or half of the bytes, so a few texts are continued several times as
            fast, with slightly different logits.
        cache_dtype : {"bfloat16"}, optional
            Keep the keys and values of the texts so far as bfloat16: half of the memory, with
            slightly different logits.
        logits_processor, stopping_criteria : callable or list of them, optional
            ``processor(ids, logits)`` returns the logits (v,) to choose from; ``criterion(ids,
            logits)`` is called after each token and returns whether the row has ended. `ids` (t,)
            are the row's tokens so far without padding. In beam search, logits are
            log-probabilities.
        prefix_allowed_tokens_fn : callable, optional
            ``function(row, ids)`` returns the tokens that may follow `ids` (t,) of prompt `row`.

        Raises
        ------
        TypeError
            An argument or option has another type, or there is no such option.
        ValueError
            An option is out of range or contradicts another one, or there are too few positions for
            the prompts and the new tokens.

        See Also
        --------
        stream : an iterator over the new tokens.

        Examples
        --------
        >>> from reformer_c import ReformerModelWithLMHead
        >>> config = ReformerConfig(
        ...     attn_layers=["local", "lsh"], num_attention_heads=2, is_decoder=True
        ... )
        >>> model = ReformerModelWithLMHead(config, rng=0)
        >>> model.generate([[3, 4, 5]], max_new_tokens=4, num_beams=3, rng=0).shape
        (1, 7)
        """
        call = Call(
            input_ids, attention_mask, num_hashes=num_hashes, rotations=rotations,
            seed=draw_seed(rng),
        )  # fmt: skip
        prepared = self._prepare(call, generation_config, options)
        self._check_streamer(streamer, prepared)
        return self._write(prepared, streamer)

    @staticmethod
    def _write(prepared: Prepared, streamer: Callable[[np.ndarray], Any] | None) -> np.ndarray:
        """The prompts and the generated tokens (b * num_return_sequences, t + new)."""
        ids, prompts, source, rules, draws = prepared
        chosen = rules.options
        if chosen.num_beams > 1:
            found = [row for rows in beam_search(source, prompts, rules, draws) for row in rows]
            new = np.full((len(found), max(map(len, found))), chosen.pad_token_id, np.int64)
            for row, tokens in zip(new, found, strict=True):
                row[: len(tokens)] = tokens
        else:
            steps = []
            for step in stream_tokens(source, prompts, rules, draws):
                steps.append(step)
                if streamer is not None:
                    streamer(step.copy())
            new = np.array(steps, np.int64).reshape(-1, len(draws)).T
        return np.concatenate([np.repeat(ids, chosen.num_return_sequences, axis=0), new], axis=1)

    def stream(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        generation_config: GenerationConfig | None = None,
        num_hashes: int | None = None,
        rotations: Sequence[np.ndarray] | None = None,
        rng: Any = None,
        **options: Any,
    ) -> Iterator[np.ndarray]:
        """Like `generate`, but an iterator over the new tokens (b,) int64 of each step.

        Arguments are checked before the iterator is returned.

        Parameters
        ----------
        input_ids, attention_mask, generation_config, num_hashes, rotations, rng, **options
            As in `generate`, without beam search.

        Examples
        --------
        >>> from reformer_c import ReformerModelWithLMHead
        >>> config = ReformerConfig(attn_layers=["local"], num_attention_heads=2, is_decoder=True)
        >>> model = ReformerModelWithLMHead(config, rng=0)
        >>> len(list(model.stream([[3, 4, 5]], max_new_tokens=4, rng=0)))
        4
        """
        call = Call(
            input_ids, attention_mask, num_hashes=num_hashes, rotations=rotations,
            seed=draw_seed(rng),
        )  # fmt: skip
        _, prompts, source, rules, draws = self._prepare(call, generation_config, options)
        if rules.options.num_beams > 1:
            raise ValueError(
                "num_beams must be 1 for stream: beam search may revise tokens until its end"
            )
        return stream_tokens(source, prompts, rules, draws)

    @names_keywords
    def cache_bytes(
        self,
        t: int,
        *,
        prompt: int | None = None,
        batch: int = 1,
        cache_dtype: str | None = None,
        cache_length: int | None = None,
    ) -> int:
        """Bytes of the cache of `generate` for `batch` texts of t tokens.

        With t the length of the prompt and all new tokens, `generate` allocates this much; pages
        that are not written yet take no memory. A local layer's cache does not grow with t, nor
        does any beyond `cache_length`. If ``config.num_buckets`` is None, the length of the
        `prompt` (t by default) determines the number of buckets.

        Parameters
        ----------
        t : int
            Tokens of a text, the prompt and all new ones.
        prompt : int, optional
            Tokens of the prompt; `t` by default.
        batch : int
            Texts.
        cache_dtype : "bfloat16" or None
            As in `generate`.
        cache_length : int, optional
            As in `generate`.
        """
        if cache_dtype not in (None, *CACHE_DTYPES):
            raise ValueError(f"cache_dtype must be 'bfloat16' or None, got {cache_dtype!r}")
        size = self.compute_dtype.itemsize if cache_dtype is None else 2
        return cache_bytes(
            self.config, t, prompt=prompt, batch=batch, cache_length=cache_length, itemsize=size
        )

    def _prepare(self, call: Call, generation_config: Any, options: dict[str, Any]) -> Prepared:
        """Check all arguments."""
        refuse_unknown(options, OPTIONS, "generate")
        if call.encoder_states is None and options.get("decoder_start_token_id") is not None:
            raise TypeError("decoder_start_token_id is an option of ReformerEncoderDecoder only")
        functions = {name: options.pop(name) for name in FUNCTIONS if name in options}
        defaults = self.generation_config
        if generation_config is not None:
            defaults = _options("generation_config", generation_config).over(defaults)
        first = defaults.token("bos_token_id", options, self.config.vocab_size)
        ids, prefix = self._prompt_ids(call, first), call.argument_prefix
        mask = as_rows(f"{prefix}attention_mask", call.attention_mask)
        mask = check_mask(mask, len(ids), ids.shape[1], prefix)
        prompts = [row if mask is None else row[mask[i]] for i, row in enumerate(ids)]
        begin = np.array([self.config.padding_id if first is None else first], np.int64)
        prompts = [row if len(row) else begin for row in prompts]
        longest, limit = max(map(len, prompts)), self.config.num_positions
        if longest > limit:
            raise ValueError(
                f"{prefix}input_ids must have at most {limit} tokens (positions), got {longest}"
            )
        chosen = defaults.resolved(options, ids.shape[1], limit - longest, self.config.vocab_size)
        if chosen.pad_token_id is None:
            chosen.pad_token_id = self.config.padding_id
        if chosen.weights is not None and not chosen.use_cache:
            raise ValueError("weights must be None with use_cache=False, which has no steps")
        for name in ("cache_dtype", "cache_length"):
            if getattr(chosen, name) is not None and not chosen.use_cache:
                raise ValueError(f"{name} must be None with use_cache=False, which has no cache")
        rules = Rules(chosen, **functions)
        source = self._source(prompts, chosen, call)
        # the beams of a prompt share one generator
        copies = 1 if chosen.num_beams > 1 else chosen.num_return_sequences
        return Prepared(ids, prompts, source, rules, self._draws(call, prompts, copies))

    def _prompt_ids(self, call: Call, first: int | None) -> np.ndarray:
        """Checked ids (b, t) of the prompts, or the token `first` if none are given."""
        name, input_ids = f"{call.argument_prefix}input_ids", call.input_ids
        if input_ids is None:
            if first is None:
                raise TypeError(f"{name} must be given, or a bos_token_id")
            input_ids = [[first]]
        ids = as_rows(name, input_ids)
        assert ids is not None
        if ids.size == 0:
            ids = ids.astype(np.int64)  # NumPy makes floats of an empty list
        ids = check_ids(name, ids, self.config.vocab_size)
        if len(ids) == 0:
            raise ValueError(f"{name} must have at least one row, got shape {ids.shape}")
        return ids

    @staticmethod
    def _check_streamer(streamer: Any, prepared: Prepared) -> None:
        if streamer is not None and not callable(streamer):
            raise TypeError(f"streamer must be a function of the new tokens, got {streamer!r}")
        if streamer is not None and prepared.rules.options.num_beams > 1:
            raise ValueError(
                "streamer must be None with num_beams: beam search may revise tokens until its end"
            )

    def _source(
        self, prompts: Sequence[np.ndarray], chosen: GenerationConfig, call: Call
    ) -> LogitsSource:
        """The source of logits; texts with the same number of buckets are computed together."""
        counts = [num_buckets_of(self.config, len(prompt)) for prompt in prompts]
        kinds = [count for i, count in enumerate(counts) if count not in counts[:i]]
        groups = np.array([kinds.index(count) for count in counts])
        sources: dict[int, LogitsSource] = {}
        weights = StepWeights(chosen.weights)
        for group, num_buckets in enumerate(kinds):
            prompt_index = np.flatnonzero(groups == group)
            begin = self._beginning(replace(call, num_buckets=num_buckets))
            longest, drop = max(len(prompts[int(i)]) for i in prompt_index), None
            longest += chosen.max_new_tokens
            if chosen.cache_length is not None and longest > chosen.cache_length:
                longest, drop = chosen.cache_length, chosen.cache_drop
            sources[group] = (
                Decoder(
                    begin, self.head, longest, prompt_index, weights, drop=drop,
                    cache_dtype=chosen.cache_dtype,
                )
                if chosen.use_cache
                else UncachedSource(partial(self._recompute, begin, prompt_index))
            )  # fmt: skip
        return sources[0] if len(sources) == 1 else Grouped(groups, sources)

    @staticmethod
    def _draws(call: Call, prompts: Sequence[np.ndarray], copies: int) -> list[np.random.Generator]:
        """A generator for each of `copies` texts of each prompt.

        It depends only on the prompt, on the row that the encoder read, if any, and on the number
        of equal prompts before it: a row is drawn as it would be without the others.
        """
        draws, before = [], Counter[str]()
        for i, prompt in enumerate(prompts):
            text = prompt.tobytes().hex()
            if call.encoder_states is not None:
                text = f"{call.encoder_states.row_keys[i]} {text}"
            for _ in range(copies):
                key = random_key(call.seed, "sampling", text, before[text])
                draws.append(np.random.default_rng(key))
                before[text] += 1
        return draws

    def _recompute(
        self,
        begin: Callable[..., Pass],
        prompt_index: np.ndarray,
        ids: np.ndarray,
        texts: np.ndarray,
    ) -> np.ndarray:
        """Logits (b, v) of the next tokens, by a forward pass."""
        run = begin(ids, prompt_index[texts])
        run.forward()
        return self.head.next_logits(run)

    def _beginning(self, call: Call) -> Callable[..., Pass]:
        """A function of ids (b, t), the indices (b,) of their prompts, and observers, that returns
        a pass over them."""

        def begin(
            ids: np.ndarray,
            prompt_index: np.ndarray | None = None,
            observers: tuple[Observer, ...] = (),
        ) -> Pass:
            own = replace(
                call, input_ids=ids, attention_mask=None, prompt_index=prompt_index,
                observers=observers,
            )  # fmt: skip
            return self._pass(
                check_inputs(self.config, self.compute_dtype, self._pad_vector, own), own
            )

        begin(np.zeros((1, 1), np.int64))  # to check the hashing arguments before any work
        return begin

    def _texts_of_folder(self) -> dict[str, str]:
        return {GENERATION_CONFIG: self.generation_config.to_json_string()}

    def _read_texts(self, folder: Path, changes: Mapping[str, Any]) -> None:
        if (folder / GENERATION_CONFIG).is_file():
            self.generation_config = GenerationConfig.from_json(folder)
        for name in changes.keys() & GENERATION_FIELDS:
            setattr(self.generation_config, name, changes[name])


def _options(name: str, config: Any) -> GenerationConfig:
    if not isinstance(config, GenerationConfig):
        kind = f"{type(config).__module__}.{type(config).__name__}".removeprefix("builtins.")
        raise TypeError(
            f"{name} must be a reformer_c.GenerationConfig, got {kind}: "
            "GenerationConfig.from_dict converts a dictionary"
        )
    return config
