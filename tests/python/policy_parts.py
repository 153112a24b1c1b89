"""A policy that answers as it is told, for the tests of policies in Python."""

from __future__ import annotations

import numpy as np

import mnemex as mx
from mnemex.testing import tokens

SHAPE = {"rows": 2, "heads": 2, "key_dim": 3, "value_dim": 2}


class Plan:
    """A policy that answers as it is told, and notes what it saw."""

    def __init__(self, answer=None):
        self.answer, self.calls = answer or (lambda *_: mx.Edits()), 0

    def plan(self, columns, staged, hits):
        self.calls += 1
        self.seen = columns, staged, hits
        return self.answer(columns, staged, hits)


def filled(policy, n=3, **options):
    """Make a bank with n entries in each lane."""
    bank = mx.Bank(**SHAPE | {"write": policy} | options)
    bank.write(*tokens(np.random.default_rng(1), bank, bank.rows, n))
    return bank
