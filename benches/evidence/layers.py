"""Whether every layer needs a memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benches.evidence.claim import Claim, Tried

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benches.evidence.subject import Subject

WINDOW, K = 128, 32


def _try(subject: Subject) -> Sequence[Tried]:
    n = subject.model.config.num_hidden_layers
    chosen = {
        "all layers": range(n),
        "every third layer": range(2, n, 3),
        "bottom third": range(n // 3),
        "middle third": range(n // 3, 2 * n // 3),
        "top third": range(2 * n // 3, n),
        "one layer, at two thirds": range(2 * n // 3, 2 * n // 3 + 1),
    }
    tried = [subject.without_memory("", WINDOW)]
    for name, layers in chosen.items():
        memory = {"layers": list(layers)}
        tried.append(subject.with_memory("", name, WINDOW, memory=memory, attach={"top_k": K}))
    return tried


CLAIM = Claim(
    name="Memory on all layers, or on few",
    source="Extended Mind Transformers, Klett and Ahle 2024 (many layers beat one); Do Transformers Need Deep "
    "Long-Range Memory, Rae and Razavi 2020 (few layers do)",
    says="Without training, memory on all layers beats memory on a third of them, and a third beats one layer.",
    setting=f"Window {WINDOW}, best {K} of each query. Layers without a memory see their window and the sinks alone.",
    unit="bits per byte",
    try_it=_try,
    pairs=(("all layers", "every third layer"), ("every third layer", "one layer, at two thirds")),
)
