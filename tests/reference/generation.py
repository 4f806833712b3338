"""One text, continued token by token: every token from a forward pass over all before it.

`logits_of(ids)` gives the logits (v,) of what follows ids (t,). Options have Hugging Face's names;
they apply in transformers' order: penalties, bans, then what sampling draws from.
"""

import numpy as np
from tolerances import tolerance


def processed(z, ids, prompt, options, eos):
    """Logits (v,) under the options that do not draw."""
    z = np.array(z)
    for token in set(ids.tolist()):
        penalty = options["repetition_penalty"]
        z[token] = z[token] / penalty if z[token] > 0 else z[token] * penalty
    n = options["no_repeat_ngram_size"]
    text = ids.tolist()
    for start in range(len(text) - n + 1 if n else 0):
        gram = text[start : start + n]
        if gram[:-1] == text[len(text) - n + 1 :]:
            z[gram[-1]] = -np.inf
    for word in options["bad_words_ids"] or ():
        if len(word) == 1 or text[-len(word) + 1 :] == word[:-1]:
            z[word[-1]] = -np.inf
    if len(ids) - prompt < options["min_new_tokens"] and eos is not None:
        z[eos] = -np.inf
    z[options["suppress_tokens"] or []] = -np.inf
    return z


def drawable(z, options):
    """Which tokens sampling may draw: booleans (v,)."""
    z = z / options["temperature"]
    order = np.argsort(-z, kind="stable")
    keep = np.isfinite(z)
    if options["top_k"]:
        keep &= z >= np.sort(z)[-min(options["top_k"], len(z))]
    p = np.where(keep, np.exp(z - z.max()), 0)
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    keep[order[before >= options["top_p"]]] = False
    p = np.where(keep, p, 0)
    return keep & (p >= options["min_p"] * p.max())


def check(ids, prompt, logits_of, options, eos):
    """Assert that each new token of ids (t,), after the first `prompt`, is one that the options
    allow, and that the text ends where it has to; how many tokens there are before the padding."""
    for t in range(prompt, len(ids)):
        z = processed(logits_of(ids[:t]), ids[:t], prompt, options, eos)
        if options["do_sample"]:
            assert drawable(z, options)[ids[t]]
        else:
            # two tokens as likely as each other differ by rounding
            assert z[ids[t]] >= z.max() - tolerance("model_backward", "float64")
        if ids[t] == eos:
            return t + 1
    return len(ids)
