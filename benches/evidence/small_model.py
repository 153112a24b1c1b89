"""A small model for which far context is worth having, trained here on bytes of the standard library.

Five layers, four of which see 256 bytes; the fourth sees all, without rotary encoding, so any memory can be put in
place of its past. It learns as Transformer-XL does, over a stream that is never reset: local layers carry their last
keys and values, the far layer those of up to 4,096 bytes, without gradient. A share of the steps shows it the window
alone: else the baseline without a memory would be a straw man.
"""

from __future__ import annotations

import hashlib
import math
import random
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, Exaone4Config, Exaone4ForCausalLM

if TYPE_CHECKING:
    from collections.abc import Callable

VOCABULARY, BOS = 257, 256
WINDOW, FAR_LAYER = 256, 3
LANES, CHUNK = 8, 1024
STEPS = 600
"""About 5 million bytes: a quarter of an hour on two quiet processors."""
FAR = (0, 1024, 4096)
EARLY, LATE = (0.15, 0.6, 0.25), (0.12, 0.44, 0.44)
"""How often a step sees each of `FAR` older bytes in the far layer, in the first 45 % of the steps and after."""
RATE, CLIP, WARM_UP = 4e-3, 1.0, 20
POSITIONS = 32
"""Chunks after which positions begin again: rotary angles of millions are coarse in float32."""

HELD_OUT = ("argparse", "tarfile", "typing", "_pydecimal", "doctest", "mailbox", "inspect", "turtle", "decimal")
NAME = "mnemex_evidence_stream"


class Budget(NamedTuple):
    """How long to train."""

    steps: int
    seed: int = 0


def library(*, seed: int) -> bytes:
    """All modules of the standard library but those held out and their tests, siblings side by side, each after BOS.

    BOS is given as byte 255, which UTF-8 never has; `tokens` puts it right.
    """
    root = Path(sysconfig.get_path("stdlib"))
    folders: dict[Path, list[Path]] = {}
    for path in sorted(root.rglob("*.py")):
        if "site-packages" not in path.parts and not any(name in path.stem for name in HELD_OUT):
            folders.setdefault(path.parent, []).append(path)
    chance = random.Random(seed)
    groups = sorted(folders.values())
    chance.shuffle(groups)
    parts = []
    for group in groups:
        chance.shuffle(group)
        parts += [b"\xff" + path.read_bytes().replace(b"\xff", b"?") for path in group]
    return b"".join(parts)


def tokens(text: bytes) -> Tensor:
    """Bytes as token ids, int64 `[n]`; 255, which UTF-8 never has, stands for BOS."""
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    return ids.masked_fill(ids == 255, BOS)


def untrained() -> Exaone4ForCausalLM:
    """Make the model as it begins: far scores small at first, grown by training."""
    config = Exaone4Config(  # type: ignore[call-arg]  # takes what every configuration does
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=704, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, sliding_window=WINDOW, max_position_embeddings=1 << 20,
        layer_types=["full_attention" if i == FAR_LAYER else "sliding_attention" for i in range(5)],
        bos_token_id=BOS, eos_token_id=BOS, tie_word_embeddings=False, attn_implementation="sdpa",
    )  # fmt: skip
    model = Exaone4ForCausalLM(config)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, 0.0, 1.0)
    nn.init.constant_(model.model.layers[FAR_LAYER].self_attn.q_norm.weight, 4.0)
    return model


def trained(budget: Budget, folder: Path, say: Callable[[str], None]) -> Exaone4ForCausalLM:
    """Train, or take what the same budget left in `folder`."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    kept = folder / f"small-model-{budget.steps}-{budget.seed}-{recipe}"
    if kept.is_dir():
        return Exaone4ForCausalLM.from_pretrained(kept, dtype=torch.float32).eval()
    torch.manual_seed(budget.seed)
    model = untrained()
    _train(model, tokens(library(seed=budget.seed)), budget, say)
    model.save_pretrained(kept)
    return model.eval()


class _Stream:
    """What each layer carries from chunk to chunk; it stands in for the model's attention while that trains."""

    def __init__(self) -> None:
        self.past: dict[int, tuple[Tensor, Tensor]] = {}
        self.far = 0

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        _mask: object,
        **how: Any,  # noqa: ANN401 - whatever a model gives its attention
    ) -> tuple[Tensor, None]:
        layer: int = module.layer_idx  # type: ignore[assignment]  # typed as a submodule through nn.Module
        local = layer != FAR_LAYER or not self.far
        keep = WINDOW - 1 if layer != FAR_LAYER else max(FAR)
        n, new = query.shape[2], (key.detach(), value.detach())
        if layer in self.past:
            old_keys, old_values = self.past[layer]
            reach = WINDOW - 1 if local else self.far
            seen_from = max(0, old_keys.shape[2] - reach)
            key = torch.cat([old_keys[:, :, seen_from:], key], 2)
            value = torch.cat([old_values[:, :, seen_from:], value], 2)
            new = (torch.cat([old_keys, new[0]], 2), torch.cat([old_values, new[1]], 2))
        self.past[layer] = (new[0][:, :, -keep:], new[1][:, :, -keep:])
        at = torch.arange(key.shape[2]) - (key.shape[2] - n)
        ago = torch.arange(n)[:, None] - at
        seen = (ago >= 0) & (ago < WINDOW) if local else ago >= 0
        out = functional.scaled_dot_product_attention(
            query, key, value, seen, scale=how.get("scaling"), enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None


def _train(model: Exaone4ForCausalLM, ids: Tensor, budget: Budget, say: Callable[[str], None]) -> None:
    stream = _Stream()
    AttentionInterface.register(NAME, stream.attend)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    usual = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    rest = [p for p in model.parameters() if all(p is not h for h in hidden)]
    optimizers = (
        torch.optim.Muon(hidden, lr=RATE, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0),
    )
    chance = random.Random(budget.seed)
    lanes = ids[: len(ids) // LANES * LANES].view(LANES, -1)
    model.train()
    for step in range(budget.steps):
        share = step / budget.steps
        stream.far = chance.choices(FAR, EARLY if share < 0.45 else LATE)[0]
        rate = min((step + 1) / WARM_UP, 1.0) * min(1.0, (1.0 - share) / 0.7)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = RATE * rate
        if step % POSITIONS == 0:  # a glitch of one window, for the sake of exact angles
            stream.past = {layer: past for layer, past in stream.past.items() if layer == FAR_LAYER}
        start = step * CHUNK % (lanes.shape[1] - CHUNK - 1)
        given, wanted = lanes[:, start : start + CHUNK], lanes[:, start + 1 : start + CHUNK + 1]
        positions = torch.arange(CHUNK)[None] + step % POSITIONS * CHUNK
        logits = model(given, position_ids=positions, use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0 or step == budget.steps - 1:
            say(f"step {step + 1} of {budget.steps}: {loss.item() / math.log(2):.3f} bits per byte, far {stream.far:,}")
    model.set_attn_implementation(usual)
