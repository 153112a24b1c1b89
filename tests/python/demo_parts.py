"""A tokenizer of bytes, a random model that reads them, and a report made up of plain numbers, for the demo's tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mnemex.demo.findings import AtWindow, Reading, Reopened, Report, Windows, Written
from mnemex.demo.measure import Row, with_recovered
from mnemex.demo.passages import Passages, line_of_each
from mnemex.demo.reading import Source, Text, tokenize
from mnemex.demo.spread import Spread

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = (
    "first line\n"
    "</script><script>alert(1)</script>\n"
    "<!-- <b onmouseover='alert(2)'>&amp;&lt; \"quoted\" {{script}} {{nothing}} ${x}\n"
    "\ttabs\t\tand\rreturns\r\n"
    "emoji \U0001f9e0\U0001f469\u200d\U0001f52c, \u202eright to left\u202c, nul \x00, bell \x07, del \x7f\n"
    "\n\n\n"
    "</div></span></main>\n" + "a long line " * 60 + "\u2028 no line of ours\n"
)
"""Everything that could break out of the page, or that a browser would hide."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer with a beginning-of-text token and one token for each byte, so that characters are split."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, **{letter: i + 1 for i, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def byte_model(**changes: object) -> LlamaForCausalLM:
    """Make a random model of 257 tokens whose attention matters."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=257, num_key_value_heads=2, bos_token_id=0, eos_token_id=None, pad_token_id=0, **sizes, **changes
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return model


def saved_model(folder: Path) -> Path:
    """Save the model and its tokenizer as a folder that transformers loads."""
    byte_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def text_of(content: str, *, name: str = "text", n_tokens: int = 10_000) -> Text:
    """Tokenize a string by bytes."""
    return tokenize(Source(name, content), byte_tokenizer(), n_tokens=n_tokens, least=1)


def trace(ids: np.ndarray, share: np.ndarray) -> SimpleNamespace:
    """Make what a layer retrieved: `ids` `[B, Hq, T, k]`, alike in weight, and the memory's `share` `[B, Hq, T]`."""
    found = ids >= 0
    mass = (found / np.maximum(found.sum(-1, keepdims=True), 1)).astype(np.float32)
    return SimpleNamespace(ids=ids, mass=mass, share=share.astype(np.float32))


def report_of(
    content: str,
    *,
    name: str = "text",
    written: str = "written <b>",
    n_equal: int | None = None,
    other_windows: bool = False,
) -> Report:
    """Make a report about a text, in which each token read the token 40 before it."""
    text, rng = text_of(content, name=name), np.random.default_rng(0)
    n = len(text.ids)
    passages = Passages(line_of_each(text.pieces), sinks=4)
    ids = np.arange(n)[None, None, :, None] - 44
    share = np.where(ids[..., 0] >= 0, rng.uniform(0.1, 0.3, n), 0.0)
    spread = Spread(n, window=16, sinks=4, skip=32)
    for start in range(0, n, 8):
        part = slice(start, start + 8)
        for watcher in (passages, spread):
            watcher.add(len(range(n)[part]), {0: trace(np.maximum(ids[:, :, part], -1), share[:, :, part])})
    passages.finish()
    window, full = Row("window 16 + 4 sinks", 2.0, 1000, 0, 1.0), Row("full attention", 1.0, 9000, 0, 1.0)
    rows = [Row("window 16", 3.0, 900, 0, 1.0), window, Row("+ memory, best 2", 1.25, 1000, 8000, 1.5, k=2)]
    rows = with_recovered(
        [*rows, Row("+ memory, every entry", 1.0, 1000, 8000, 2.0, k=None), full], window=window, full=full
    )
    nats = np.concatenate([[np.nan], rng.uniform(0.0, 4.0, n - 1)])
    tokens = list(written)
    points = [AtWindow(8, 2.5, 1.5), AtWindow(16, 2.0, 1.25), AtWindow(32, 1.6, 1.2)]
    return Report(
        model="tiny <model>",
        rows=rows,
        baseline=rows[1],
        full=rows[-1],
        windows=Windows(n, points, 1.0) if other_windows else None,
        n_entries=n,
        reading=Reading(text, passages, spread, 2, nats, nats + rng.uniform(-0.1, 3.0, n)),
        written=Written(content[:80], 80, tokens, tokens[::-1], len(tokens) if n_equal is None else n_equal),
        reopened=Reopened(12_345_678, "aa" * 32, "aa" * 32, 0.2),
        window=16,
        sinks=4,
        chunk=2,
        whole_chunk=8,
        skip=32,
        facts={"Versions": "mnemex <0>", "Date": "2026-01-01"},
    )
