"""What the size of a memory is worth to a model that was trained to look far back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benches.evidence.claim import Claim, Tried
from benches.evidence.small_model import FAR_LAYER, WINDOW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benches.evidence.subject import Subject

SIZES = (256, 1024, 4096)
K = 32


def _try(subject: Subject) -> Sequence[Tried]:
    tried = [subject.without_memory("", WINDOW)]
    for size in SIZES:
        memory = {"layers": [FAR_LAYER], "capacity": size}
        tried.append(subject.with_memory("", _named(size), WINDOW, memory=memory, attach={"top_k": K}))
    tried.append(subject.with_memory("", "all earlier", WINDOW, memory={"layers": [FAR_LAYER]}, attach={"top_k": K}))
    return tried


def _named(size: int) -> str:
    return f"{size:,} entries"


CLAIM = Claim(
    name="A larger memory is worth more",
    source="Memorizing Transformers, Wu et al. 2022, arXiv 2203.08913",
    says="Bits per byte fall with the size of the memory, for a model that was trained with one.",
    setting="A model of 3.8 million parameters over bytes, trained by this command with up to 4,096 older bytes in its "
    f"fourth layer; window {WINDOW}, best {K} of each query, joined in one softmax where the paper has a gate. What it "
    "reads was held out. It is the same model without a memory: a share of its training showed it the window alone.",
    unit="bits per byte",
    try_it=_try,
    pairs=(
        (_named(SIZES[0]), "no memory"),
        (_named(SIZES[1]), _named(SIZES[0])),
        (_named(SIZES[2]), _named(SIZES[1])),
        ("all earlier", _named(SIZES[2])),
    ),
    on="small",
)
