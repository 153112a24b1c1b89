"""The state of a forward pass that torch.compile traces: the memory is read by one operator, so the graph stays whole.

It serves what a graph can hold: reading, without gradients or autocast, without a cache of the caller's, over
"sdpa". Everything else takes the ordinary state, at which a graph breaks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mnemex.errors import ShapeError, Unsupported
from mnemex.hf import masks
from mnemex.hf.function import MERGE, NAMES, Attended, Call
from mnemex.parts import Shared
from mnemex.torch.merges import GATED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mnemex.hf.attachment import Attachment


class CompiledForward:
    """One forward pass inside a graph; each layer reads the newest version of its bank."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment, self.layers = attachment, attachment.indices

    @staticmethod
    def serves(attachment: Attachment, names: set[str], inputs: Mapping[str, Any]) -> bool:
        """Tell whether this pass is one of those described above; `names` are those of the attention functions."""
        mask = inputs.get("attention_mask")
        return (
            not torch.is_grad_enabled()
            and not torch.is_autocast_enabled(attachment.stack.model.device.type)
            and names == {NAMES["sdpa"]}
            and attachment.stack.kind == "causal"
            and not attachment.stages_tokens
            and attachment.trace is None
            and attachment.rotary is None
            and not isinstance(attachment.top_k, Shared)
            and not attachment.stack.model.training
            and inputs.get("past_key_values") is None
            and (mask is None or (isinstance(mask, Tensor) and mask.ndim == 2))
        )

    def attend(self, index: int, call: Call) -> Attended:
        """Attend in the attached layer `index`."""
        from mnemex.torch import compiled

        _, module, query, key, value, mask, kwargs = call
        for name in ("cu_seq_lens_q", "position_bias", "softcap", "s_aux"):
            if kwargs.get(name) is not None:
                raise Unsupported(
                    f"{type(module).__name__} attends with {name}, which no graph holds: do not compile it"
                )
        if mask is not None and mask.dtype != torch.bool:
            raise masks.biased(module)
        bank = self._attachment.memory[index]
        key_dim, value_dim, heads = compiled.sizes(bank)
        if (heads, key_dim, value_dim) != (key.shape[1], key.shape[3], value.shape[3]):
            raise ShapeError(
                f"the bank of layer {index} has heads, key_dim and value_dim {(heads, key_dim, value_dim)}, the module "
                f"attends with {(key.shape[1], key.shape[3], value.shape[3])}"
            )
        merge = getattr(module, MERGE, None)
        out = compiled.attention(
            query, key, value, bank, self._attachment.top_k, mask,
            is_causal=mask is None and query.shape[2] > 1, scale=kwargs.get("scaling"),
            weight=None if merge is None else merge(query), gated=self._attachment.merge is GATED,
        )  # fmt: skip
        return out.transpose(1, 2).contiguous(), None
