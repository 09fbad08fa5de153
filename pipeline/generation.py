"""How good pictures are that nobody asked for one by one: how far they are, all together, from real ones.

The Fréchet distance is taken between features of a small classifier, the judge, which was trained on real pictures;
what class it takes a picture for says whether it shows what was asked for. Both depend on the judge, so figures of two
judges don't compare; the energy distance needs none.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import StillroomError

EPOCHS, BATCH, RATE = 4, 128, 4e-3  # of the judge
FEATURES = 64
ROWS_AT_ONCE = 1000


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Return |m - n|² + tr(A + B - 2 (A B)^½) of the means m, n and covariances A, B of rows: [N, D], [M, D].

    Worked out in float64; the root's trace is the sum of the roots of the eigenvalues of A^½ B A^½, which are those of
    A B and never complex. Source: Heusel 2017 (1706.08500), equation 6; Dowson & Landau 1982.

    Raises: StillroomError for fewer than two rows, for other features, or for some that are not finite.
    """
    for rows in (features, others):
        if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] != features.shape[1] or not rows.isfinite().all():
            raise StillroomError(
                f"frechet distance: found features {list(features.shape)} and {list(others.shape)}; expected "
                f"finite ones, [N, D] and [M, D], of two rows at least; give it more pictures"
            )
    a, b = features.double(), others.double()
    first, second = torch.atleast_2d(torch.cov(a.T)), torch.atleast_2d(torch.cov(b.T))
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    apart = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return float(apart + first.trace() + second.trace() - 2 * shared)


def energy_distance(rows: Tensor, others: Tensor) -> float:
    """Return 2 E|X - Y| - E|X - X'| - E|Y - Y'| over pairs of different rows: [N, P], [M, P], N and M two or more.

    On average 0 of two samples of one distribution, and above 0 of others; of samples it may fall below 0.
    Source: Székely & Rizzo 2013.
    """
    between = torch.cdist(rows.float(), others.float()).double().mean()
    return float(2 * between - _within(rows) - _within(others))


def _within(rows: Tensor) -> Tensor:
    """Return the mean distance of pairs of different rows."""
    return torch.cdist(rows.float(), rows.float()).double().fill_diagonal_(0).sum() / (len(rows) * (len(rows) - 1))


class Judge(nn.Module):
    """A small convolutional classifier of pictures whose pixels lie in [0, 1]: [B, side²] -> logits [B, C]."""

    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        quarter = -(-side // 4)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            square=nn.Unflatten(1, (1, side, side)),
            halved=nn.Conv2d(1, 16, 5, stride=2, padding=2),
            halved_relu=nn.ReLU(),
            quartered=nn.Conv2d(16, 32, 3, stride=2, padding=1),
            quartered_relu=nn.ReLU(),
            flat=nn.Flatten(),
            features=nn.Linear(32 * quarter * quarter, FEATURES),
            features_relu=nn.ReLU(),
        )
        self.body, self.classifier = nn.Sequential(layers), nn.Linear(FEATURES, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, side²] -> [B, C]."""
        return self.classifier(self.body(pictures))

    @torch.no_grad()
    def judged(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [N, FEATURES] and the class [N] of pictures [N, side²]; pixels outside [0, 1] are cut."""
        features = torch.cat([self.body(some.float().clamp(0, 1)) for some in pictures.split(ROWS_AT_ONCE)])
        return features, self.classifier(features).argmax(dim=1)


def fit_judge(pictures: Tensor, labels: Tensor, *, side: int, classes: int, seed: int) -> Judge:
    """Return a judge trained on real pictures [N, side²] and their classes int64 [N]; torch's generator stays as is.

    Raises: StillroomError for fewer pictures than a batch.
    """
    if len(pictures) < BATCH:
        raise StillroomError(
            f"judge: found {len(pictures)} real pictures; expected at least {BATCH} to train it on; show more"
        )
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        judge, steps = Judge(side, classes), EPOCHS * (len(pictures) // BATCH)
        optimizer = torch.optim.AdamW(judge.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        for _ in range(EPOCHS):
            order = torch.randperm(len(pictures))
            for rows in order[: len(order) // BATCH * BATCH].split(BATCH):
                optimizer.zero_grad()
                loss = functional.cross_entropy(judge(pictures[rows]), labels[rows])
                loss.backward()
                optimizer.step()
                schedule.step()
    return judge.eval()


def generation_figures(judge: Judge, pictures: Tensor, classes: Tensor, real: Tensor) -> dict[str, float]:
    """Return `frechet`, the distance to real pictures, and `class_agreement`, how often the judge sees the class asked.

    Pictures [N, side²] made for classes int64 [N]; `real` features [M, FEATURES].
    """
    features, seen = judge.judged(pictures)
    return {
        "frechet": frechet_distance(features, real),
        "class_agreement": (seen == classes).double().mean().item(),
    }
