"""PyTorch adapter: attention over local keys and retrieved entries in one softmax, with gradients."""

from __future__ import annotations

from mnemex.torch.attach import Attachment, attach
from mnemex.torch.attention import attention
from mnemex.torch.merges import Bias, Gate

__all__ = ["Attachment", "Bias", "Gate", "attach", "attention"]
