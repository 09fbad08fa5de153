"""A BERT encoder of sentences, from weights as transformers writes them. Source: Devlin 2019; Reimers 2019."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from pipeline.errors import StillroomError

LONGEST = 128  # tokens, as the encoder was trained with
HEADS = 12
ROWS = 64  # of a batch


class SentenceEncoder(nn.Module):
    """Tokens int64 [B, L] and which of them are real, bool [B, L] -> the unit mean of their vectors, float32 [B, D]."""

    def __init__(self, vocabulary: int, positions: int, width: int, inner: int, depth: int):
        super().__init__()
        self.words, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.types, self.norm = nn.Embedding(2, width), nn.LayerNorm(width, eps=1e-12)
        layer: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "layer_norm_eps": 1e-12, "batch_first": True}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(width, HEADS, inner, **layer) for _ in range(depth))

    def forward(self, tokens: Tensor, is_real: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = self.norm(self.words(tokens) + self.positions(places) + self.types.weight[0])
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=~is_real)
        real = is_real[..., None].to(hidden.dtype)
        return normalize((hidden * real).sum(1) / real.sum(1), dim=1)


def load_encoder(path: Path) -> SentenceEncoder:
    """Return the encoder whose weights a safetensors file holds."""
    found = load_file(path)
    depth = 1 + max(int(name.split(".")[2]) for name in found if name.startswith("encoder.layer."))
    vocabulary, width = found["embeddings.word_embeddings.weight"].shape
    positions = len(found["embeddings.position_embeddings.weight"])
    inner = len(found["encoder.layer.0.intermediate.dense.weight"])
    model = SentenceEncoder(vocabulary, positions, width, inner, depth)
    model.load_state_dict(renamed(found, depth))
    return model.eval().requires_grad_(False)


def renamed(found: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Return the weights under the names that torch's own layers have."""
    names = {"words": "word_embeddings", "positions": "position_embeddings", "types": "token_type_embeddings"}
    weights = {f"{own}.weight": found[f"embeddings.{name}.weight"] for own, name in names.items()}
    parts = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    for kind in ("weight", "bias"):
        weights[f"norm.{kind}"] = found[f"embeddings.LayerNorm.{kind}"]
        for i in range(depth):
            own, layer = f"layers.{i}", f"encoder.layer.{i}"
            weights |= {f"{own}.{part}.{kind}": found[f"{layer}.{name}.{kind}"] for part, name in parts.items()}
            heads = [found[f"{layer}.attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            weights[f"{own}.self_attn.in_proj_{kind}"] = torch.cat(heads)
    return weights


def load_tokenizer(path: Path) -> Any:
    """Return the tokenizer of a file, cut at LONGEST. Raises StillroomError where its package is missing."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise StillroomError(
            "input of kind embedding: found no package tokenizers; expected it for texts; "
            "run pip install 'stillroom[text]'"
        ) from error
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.no_padding()
    return tokenizer


@torch.no_grad()
def encode(texts: list[str], folder: Path) -> Tensor:
    """Return the unit vectors of texts float32 [N, D] by the encoder in a folder, on a GPU where there is one.

    Texts of like length are encoded together, so that few pads are; a vector depends on its company by float error.
    """
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = load_encoder(folder / "model.safetensors").to(device)
    tokens = [torch.tensor(each.ids) for each in tokenizer.encode_batch(texts)]
    order = np.argsort([len(each) for each in tokens], kind="stable")
    vectors = torch.empty(len(texts), encoder.words.embedding_dim)
    for rows in np.array_split(order, -(-len(order) // ROWS)) if len(order) else ():
        padded = pad_sequence([tokens[i] for i in rows], batch_first=True).to(device)
        lengths = torch.tensor([len(tokens[i]) for i in rows], device=device)
        is_real = torch.arange(padded.shape[1], device=device) < lengths[:, None]
        vectors[rows] = encoder(padded, is_real).cpu()
    return vectors
