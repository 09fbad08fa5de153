"""Pieces of the zoo: a transformer's first weights, against the same draws made one after another."""

import torch
from torch import nn

from pipeline.models.layers import initialise_transformer


class Small(nn.Module):
    """Patches, an embedding, a block within a block, positions, and a classifier that is not the last module."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(4, 3)
        self.positions = nn.Parameter(torch.zeros(300, 4))
        self.patches = nn.Conv2d(1, 4, 2)
        self.words = nn.Embedding(5, 4)
        self.blocks = nn.Sequential(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4, bias=False)), nn.Linear(4, 4))


def test_weights_are_drawn_in_the_order_of_modules_then_positions_then_the_classifier():
    model, other = Small(), Small()
    words = model.words.weight.detach().clone()
    torch.manual_seed(0)
    initialise_transformer(model, positions=model.positions, classifier=model.classifier)
    torch.manual_seed(0)
    nn.init.xavier_uniform_(other.classifier.weight)
    nn.init.kaiming_normal_(other.patches.weight, nonlinearity="linear")
    nn.init.xavier_uniform_(other.blocks[0][1].weight)
    nn.init.xavier_uniform_(other.blocks[1].weight)
    nn.init.trunc_normal_(other.positions, std=0.02)
    nn.init.normal_(other.classifier.weight, std=0.01)
    drawn = ("classifier.weight", "patches.weight", "blocks.0.1.weight", "blocks.1.weight", "positions")
    found, wanted = model.state_dict(), other.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in drawn)
    assert not any(found[name].any() for name in ("classifier.bias", "patches.bias", "blocks.1.bias"))
    assert torch.equal(found["words.weight"], words)
    assert found["classifier.weight"].std() < 0.05 < found["blocks.1.weight"].std()
