"""What a recipe returns that trains nothing: arguments, so that another system is the same call with one changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a published system, as arguments of the calls that take them.

    Attributes
    ----------
    bank
        Of `mnemex.Memory.for_model`; where no model is at hand, of `mnemex.Bank`.
    attach
        Of `mnemex.hf.attach`; empty where a system reads by `search`.
    cache
        Of `Attachment.cache`; empty where a system reads segment by segment, without one.

    Examples
    --------
    >>> parts = mx.recipes.camelot(capacity=1000)
    >>> memory = mx.Memory.for_model(model, **parts.bank)
    >>> with mx.hf.attach(model, memory, **parts.attach) as a:
    ...     a.ingest(text, chunk=256)
    >>> fifo = dataclasses.replace(parts, bank={**parts.bank, "evict": "fifo"})  # another system
    """

    bank: Mapping[str, Any]
    attach: Mapping[str, Any] = field(default_factory=dict)
    cache: Mapping[str, Any] = field(default_factory=dict)
