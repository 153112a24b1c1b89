"""Published memories of texts, as parts: vectors of an encoder of the caller's, found by `search`."""

from __future__ import annotations

import mnemex as mx
from mnemex.recipes.parts import Parts


def memory_bank(*, capacity: int | None = None, strength: float = 1.0) -> Parts:
    """Give the parts of Zhong et al., "MemoryBank" (2024, arXiv 2305.10250): turns of a dialogue that fade.

    Published: what was said is found by the vector of a text; it is retained by exp(-t / S), where t is the time since
    it was last recalled and S a strength that starts at 1 and grows by one with every recall.
    Own reading: the paper's formula, where its program multiplies by S and forgets the strong sooner; time is counted
    in commits (a day or a turn, as a caller commits); what is retained least goes when the bank is full, where theirs
    is drawn by chance; vectors are compared by cosine.
    Outside: the encoder; summaries and portraits that a language model writes each night, which are entries like any
    other; the prompt. A recall is `bank.touch(bank.search(query, k))`.

    Parameters
    ----------
    capacity
        Memories per row, a row being a user; None: nothing is forgotten.
    strength
        Of a memory that was never recalled.

    Examples
    --------
    >>> parts = mx.recipes.memory_bank(capacity=1000)
    >>> bank = mx.Bank(key_dim=384, **parts.bank)
    """
    return Parts(bank={"metric": "cos", "capacity": capacity, "evict": mx.Retention(strength=strength)})
