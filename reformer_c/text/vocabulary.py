"""The pieces of a vocabulary file, and tokens added to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

from .checks import check_token_ids
from .pieces import SPACE, AddedToken, Reader
from .tokenizer_config import DECODER

__all__ = ["Vocabulary"]


class Vocabulary:
    """The pieces of a file, and the tokens that are matched in a text before segmentation."""

    def __init__(self, reader: Reader, tokens: Iterable[tuple[int, AddedToken]]) -> None:
        """Add tokens with given ids to those of the file."""
        self.reader = reader
        self.added = {token.content: token for token in reader.added}
        ids = dict(reader.vocabulary)
        texts = {i: text for text, i in ids.items()}
        tokens = list(tokens)
        for i, token in tokens:
            if ids.setdefault(token.content, i) != i:
                raise ValueError(
                    f"{DECODER}: the id of {token.content!r} must be {ids[token.content]}, got {i}"
                )
            if texts.setdefault(i, token.content) != token.content:
                raise ValueError(
                    f"{DECODER}: the id of {token.content!r} must be unused, got {i}, the id of "
                    f"{texts[i]!r}"
                )
        self._update({token.content: token for _, token in tokens}, ids)

    def __len__(self) -> int:
        return max(self.ids.values(), default=-1) + 1

    def token(self, name: str, value: Any, *, special: bool) -> AddedToken:
        """Convert to a token; a str that is already added keeps its matching rules."""
        token = AddedToken.of(name, value, special=special)
        before = self.added.get(token.content)
        if before is None or not isinstance(value, str):
            return token
        return replace(before, special=before.special or special)

    def known_token(self, name: str, value: Any) -> AddedToken:
        """Convert to a special token, which must be in the vocabulary."""
        token = self.token(name, value, special=True)
        if token.content not in self.ids:
            raise ValueError(
                f"{name} must be a token of the vocabulary, got {token.content!r}; "
                "add_special_tokens adds one"
            )
        return token

    def add(self, tokens: Iterable[AddedToken]) -> int:
        """Match these tokens in texts from now on; returns the number of new ids."""
        changed = {one.content: one for one in tokens if self.added.get(one.content) != one}
        new = [text for text in changed if text not in self.ids]
        self._update(changed, self.ids | dict(zip(new, count(len(self)), strict=False)))
        return len(new)

    def _update(self, changed: Mapping[str, AddedToken], ids: dict[str, int]) -> None:
        added = {**self.added, **changed}
        self.reader.add(added, ids)
        self.added, self.ids = added, ids
        self.texts = {i: text for text, i in ids.items()}

    def known_ids(self, ids: Any) -> list[int]:
        """Check that ids (t,) have pieces."""
        known: list[int] = check_token_ids(ids, len(self)).tolist()
        for i in known:
            if i not in self.texts:
                raise ValueError(f"ids must be ids of pieces, got {i}")
        return known

    def special_ids(self) -> set[int]:
        """The ids of all special tokens, including those whose name was given to another token."""
        return {self.ids[text] for text, token in self.added.items() if token.special}

    def decode(self, ids: Any, *, hidden: set[int], unk_token_id: int | None) -> str:
        """The text of ids (t,), without those that are `hidden`."""
        whole = {self.ids[token]: one.special for token, one in self.added.items()}
        run: list[int] = []
        parts: list[str] = []
        inside = False  # whether the run follows other text
        for i in [*self.known_ids(ids), None]:
            if i is not None and i not in whole:
                run.append(i)
                continue
            parts.append(self._decode_run(run, inside=inside, within=bool(parts)))
            run, inside = [], i is not None and (not whole[i] or i == unk_token_id)
            if i is not None and i not in hidden:
                parts.append(self.texts[i])
        return "".join(parts)

    def _decode_run(self, run: list[int], *, inside: bool, within: bool) -> str:
        """The text of pieces; `inside` a text, the leading space of the first piece is kept."""
        if not run:
            return ""
        if within and len(run) == 1 and self.texts[run[0]] == SPACE:
            return " "
        space = inside and self.texts[run[0]].startswith(SPACE)
        return " " * space + self.reader.decode(run)
