"""Tokens, the characters they stand for and the bytes these take; and files that cannot be read."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the demo needs transformers")

from demo_parts import HOSTILE, byte_tokenizer, text_of
from mnemex.demo.reading import Source, read, tokenize
from mnemex.errors import ArgumentError


@pytest.mark.parametrize("content", ["plain", "tab\tand\r\nreturn", "na\u00efve \U0001f9e0!", HOSTILE])
def test_pieces_are_the_text_and_bytes_are_its_bytes(content):
    text = text_of(content)
    assert "".join(text.pieces) == content
    assert text.n_bytes.sum() == len(content.encode())
    assert len(text.pieces) == len(text.ids) == len(text.n_bytes)


def test_a_character_split_into_tokens_belongs_to_its_first():
    text = text_of("a\U0001f9e0b")
    assert text.pieces == ["", "a", "\U0001f9e0", "", "", "", "b"]
    np.testing.assert_array_equal(text.n_bytes, [0, 1, 4, 0, 0, 0, 1])


def test_no_more_tokens_are_kept_than_asked_for():
    assert text_of("abcdef", n_tokens=4).pieces == ["", "a", "b", "c"]


def test_a_short_text_is_refused_with_what_to_do():
    with pytest.raises(ArgumentError, match=r"6 tokens of notes.*needs 1,088.*--text.*--window"):
        tokenize(Source("notes", "short"), byte_tokenizer(), n_tokens=8192, least=1088)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="No such file"):
        read(tmp_path / "nothing.txt", n_tokens=10)
    with pytest.raises(ArgumentError, match="directory"):
        read(tmp_path, n_tokens=10)


def test_a_file_that_is_not_utf8_is_refused_with_the_place(tmp_path):
    path = tmp_path / "latin.txt"
    for content in (b"caf\xe9 au lait", b"caf\xe9"):
        path.write_bytes(content)
        with pytest.raises(ArgumentError, match=r"byte 3 is not UTF-8"):
            read(path, n_tokens=10)


def test_a_large_file_may_be_cut_inside_a_character(tmp_path):
    path = tmp_path / "large.txt"
    path.write_text("x" + "\u00e9" * 10_000, "utf-8")
    content = read(path, n_tokens=10).content
    assert content.startswith("x\u00e9")
    assert set(content[1:]) == {"\u00e9"}
    assert len(content) < 1000


def test_the_default_text_is_pythons_own_inspect_module():
    source = read(None, n_tokens=100)
    assert source.name.startswith("inspect.py of Python 3.")
    assert "live Python objects" in source.content
