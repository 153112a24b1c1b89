"""The text the model reads: its tokens, the characters each stands for, and the bytes those take.

Bits per byte compare across tokenizers, so every token carries its share of the file's bytes. The pieces of the tokens,
put together, are the text again, whatever the tokenizer leaves out between tokens or splits inside a character.
"""

from __future__ import annotations

import codecs
import inspect
import platform
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mnemex.errors import ArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

LONGEST_TOKEN_BYTES = 64
"""More bytes per token than any text reaches on average: how much of a large file is looked at."""


class Text(NamedTuple):
    """A tokenized text.

    Attributes
    ----------
    name
        What to call it.
    ids
        Token ids, int64 `[n]`.
    pieces
        The characters of each token, `n` strings whose concatenation is the text.
    n_bytes
        Bytes of each piece in UTF-8, int64 `[n]`.
    """

    name: str
    ids: NDArray[np.int64]
    pieces: list[str]
    n_bytes: NDArray[np.int64]

    def beginning(self, n_tokens: int) -> Text:
        """Return the first tokens."""
        return Text(self.name, self.ids[:n_tokens], self.pieces[:n_tokens], self.n_bytes[:n_tokens])


class Source(NamedTuple):
    """The beginning of a file, and what to call it."""

    name: str
    content: str


def read(path: Path | None, *, n_tokens: int) -> Source:
    """Read as much of a file as `n_tokens` tokens can take.

    Parameters
    ----------
    path
        A UTF-8 file; None for `inspect.py` of the running Python's standard library.
    n_tokens
        Tokens that will be kept at most.

    Raises
    ------
    ArgumentError
        The file cannot be read, or is not UTF-8.
    """
    if path is None:
        own = Path(inspect.__file__)
        return Source(f"inspect.py of Python {platform.python_version()}", _beginning(own, n_tokens))
    return Source(path.name, _beginning(path, n_tokens))


def tokenize(source: Source, tokenizer: PreTrainedTokenizerFast, *, n_tokens: int, least: int) -> Text:
    """Take a text apart into tokens.

    Parameters
    ----------
    source, tokenizer
        The text, and a tokenizer that gives character offsets.
    n_tokens
        Tokens to keep at most.
    least
        Tokens there must be.

    Raises
    ------
    ArgumentError
        The text is too short.
    """
    encoded = tokenizer(source.content, return_offsets_mapping=True, verbose=False)
    ids = np.asarray(encoded["input_ids"][:n_tokens], np.int64)
    if len(ids) < least:
        more = "more --tokens" if len(ids) == n_tokens else "a longer --text"
        raise ArgumentError(
            f"{len(ids):,} tokens of {source.name} are too few for this window, which needs {least:,}: give {more} or "
            "a smaller --window"
        )
    ends = [0]
    for _, end in encoded["offset_mapping"][: len(ids)]:
        ends.append(max(ends[-1], end))  # special tokens are (0, 0); parts of one character share their offsets
    pieces = [source.content[start:end] for start, end in pairwise(ends)]
    return Text(source.name, ids, pieces, np.array([len(piece.encode()) for piece in pieces], np.int64))


def _beginning(path: Path, n_tokens: int) -> str:
    limit = n_tokens * LONGEST_TOKEN_BYTES
    try:
        with path.open("rb") as file:
            data = file.read(limit)
    except OSError as error:
        raise ArgumentError(f"--text {path}: {error.strerror}; give a file in UTF-8") from error
    try:
        # Where the file goes on, its beginning may end inside a character.
        return codecs.getincrementaldecoder("utf-8")().decode(data, final=len(data) < limit)
    except UnicodeDecodeError as error:
        raise ArgumentError(f"--text {path}: byte {error.start:,} is not UTF-8; convert the file to UTF-8") from error
