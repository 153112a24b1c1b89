"""PyTorch adapter: attention over local keys and retrieved entries in one softmax, with gradients."""

# ruff: noqa: E402 - an old release is refused before the names are imported that it lacks
from __future__ import annotations

import torch

from mnemex._releases import check_oldest

check_oldest("torch", torch.__version__)

from mnemex.torch.attach import Attachment, attach
from mnemex.torch.attention import attention
from mnemex.torch.merges import Bias, Gate

__all__ = ["Attachment", "Bias", "Gate", "attach", "attention"]
