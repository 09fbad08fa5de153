"""A small vision transformer: patches as tokens, learned positions, pre-norm blocks, the mean token classified.

No class token: the mean of the tokens needs no extra one and did better for plain small transformers (Beyer 2022).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.layers import Residual, initialise_transformer, require_positive


def vit_small(
    *,
    num_classes: int,
    in_shape: tuple[int, ...],
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    patch: int = 4,
    dropout: float = 0.0,
) -> "VisionTransformer":
    """Return [B, C, H, W] -> logits [B, num_classes] through `depth` blocks over (H / patch)(W / patch) tokens.

    Raises ValueError for a size below one, heads that do not divide the width, a patch that does not divide H and W.
    """
    require_positive(width=width, depth=depth, heads=heads, patch=patch, num_classes=num_classes)
    channels, height, width_of_image = in_shape
    if width % heads:
        raise ValueError(f"heads = {heads} does not divide width = {width}")
    if height % patch or width_of_image % patch:
        raise ValueError(f"patch = {patch} does not divide pictures of {height} x {width_of_image}")
    num_tokens = (height // patch) * (width_of_image // patch)
    embed = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
    blocks = nn.Sequential(*(transformer_block(width, heads=heads, dropout=dropout) for _ in range(depth)))
    return VisionTransformer(embed, blocks, num_tokens=num_tokens, width=width, num_classes=num_classes)


class VisionTransformer(nn.Module):
    """Patch embedding, positions, blocks, norm, mean over tokens, classifier."""

    def __init__(
        self, embed: nn.Conv2d, blocks: nn.Sequential, *, num_tokens: int, width: int, num_classes: int
    ) -> None:
        super().__init__()
        self.embed = embed
        self.positions = nn.Parameter(torch.empty(num_tokens, width))
        self.blocks = blocks
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)
        initialise_transformer(self, positions=self.positions, classifier=self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, num_classes]."""
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        return self.classifier(self.norm(self.blocks(tokens)).mean(1))


class SelfAttention(nn.Module):
    """Multi-head attention of tokens over themselves."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, L, D] -> [B, L, D]; a mask, bool [B, L], says which tokens may be looked at."""
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        shown = None if mask is None else mask[:, None, None]  # alike for every head and every token that looks
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=shown)
        return self.out(mixed.transpose(1, 2).flatten(2))


def transformer_block(width: int, *, heads: int, dropout: float) -> nn.Sequential:
    """Return attention and a two-layer perceptron, each normed first and added to its input: [B, L, D] -> [B, L, D]."""
    perceptron = [nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)]
    return nn.Sequential(
        Residual(nn.Sequential(nn.LayerNorm(width), SelfAttention(width, heads=heads), nn.Dropout(dropout))),
        Residual(nn.Sequential(nn.LayerNorm(width), *perceptron, nn.Dropout(dropout))),
    )
