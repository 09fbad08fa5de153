"""python -m tests.bench.codecs [--logits FILE.npy ...]: bytes a row against error, for every codec and some settings.

Each file holds real logits, float [N, C]. Without one, logits are mixtures with the shape of a trained network's at
C = 1000 and C = 10: classes lie in groups of 50 (two groups at least) in 64 dimensions; a sample is its class's
direction, with its own strength, plus noise; and one scale makes the mean probability of the first choice 0.72.

Bytes are those of one chunk, compressed where the codec says so. Speeds are of float32 logits on one core, with
(de)compression, the best of a few runs. Then come the marks: what some codec has to reach, and the exit code says
whether one does.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pipeline.store.codecs import Codec, Part, codec_json, measure_error, packed_bytes
from pipeline.store.codecs.dense import BitRound, Centred16, Centred32, Companded8
from pipeline.store.codecs.measure import blosc
from pipeline.store.codecs.sparse import Sampled, TopK
from pipeline.views import RowKeys

SETTINGS: list[Codec] = [
    Centred32(),
    Centred16(),
    *(BitRound(keep) for keep in (8, 7, 6, 5)),
    *(Companded8(levels) for levels in (255, 200, 160, 120, 80, 60)),
    *(TopK(k) for k in (100, 50, 32, 16)),
    Sampled(),
]
EXACT_BELOW = 1e-4  # nats: a codec with less mean KL than this must not change one first choice
RUNS = 5


@dataclass(frozen=True)
class Mark:
    """Bytes a row that some codec has to stay within, at a mean KL at T=1 and T=4 within `kl` nats."""

    num_classes: int
    row_bytes: float
    kl: float


MARKS = [Mark(1000, 700, 1e-3), Mark(1000, 800, 1e-4), Mark(10, 9, 1e-4)]


@dataclass(frozen=True)
class Measured:
    """One codec on some logits; speeds in MB/s of float32."""

    codec: Codec
    row_bytes: float
    error: Mapping[str, float]
    write_speed: float
    read_speed: float

    @property
    def kl(self) -> float:
        """The larger of the mean KLs at both temperatures."""
        return max(self.error["kl_t1_mean"], self.error["kl_t4_mean"])


def mixture(rows: int, num_classes: int, seed: int = 0) -> Tensor:
    """Return logits with the shape of a network's: float32 [rows, C]."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    group = torch.arange(num_classes) * max(2, num_classes // 50) // num_classes
    directions = torch.nn.functional.normalize(normal(int(group.max()) + 1, 64)[group] + normal(num_classes, 64))
    labels = torch.randint(num_classes, (rows,), generator=generator)
    strength = 7 * (0.5 + torch.rand(rows, 1, generator=generator))
    logits = (strength * directions[labels] + normal(rows, 64)) @ directions.T + normal(rows, num_classes) / 4
    return logits * confidence_scale(logits[:1024], 0.72)


def confidence_scale(logits: Tensor, confidence: float) -> float:
    """Return the factor that makes the mean probability of the first choice this large, by bisection."""
    low, high = 0.0, 100.0
    for _ in range(30):
        middle = (low + high) / 2
        below = (logits * middle).softmax(-1).amax(-1).mean() < confidence
        low, high = (middle, high) if below else (low, middle)
    return high


def measure(codec: Codec, logits: Tensor) -> Measured:
    """Return what a codec does to logits."""
    rows, num_classes = RowKeys(0, 0, np.arange(len(logits))), logits.shape[-1]
    parts = codec.parts(num_classes)
    stored = codec.encode(logits, rows)
    chunks = {name: pack(values, parts[name]) for name, values in stored.items()}

    def write() -> None:
        for name, values in codec.encode(logits, rows).items():
            pack(values, parts[name])

    def read() -> None:
        codec.decode({name: unpack(chunk, parts[name], stored[name]) for name, chunk in chunks.items()}, num_classes)

    return Measured(
        codec,
        packed_bytes(codec, logits, rows),
        measure_error(codec, logits, rows),
        logits.nbytes / 1e6 / shortest(write),
        logits.nbytes / 1e6 / shortest(read),
    )


def pack(values: Tensor, part: Part) -> bytes:
    """Return a chunk's bytes."""
    content = values.numpy().reshape(-1).view(np.uint8)
    return content.tobytes() if part.shuffle is None else blosc(part.dtype, part.shuffle).encode(content)


def unpack(chunk: bytes, part: Part, like: Tensor) -> Tensor:
    """Return the numbers of a chunk."""
    content = chunk if part.shuffle is None else blosc(part.dtype, part.shuffle).decode(chunk)
    return torch.from_numpy(np.frombuffer(bytearray(content), part.dtype)).reshape(like.shape)


def shortest(work: Callable[[], object]) -> float:
    """Return the seconds of the fastest run."""
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def words(codec: Codec) -> str:
    """Return a codec and its options in short."""
    kind, *options = codec_json(codec).values()
    return " ".join([kind, *map(str, options)])


def table(title: str, found: list[Measured]) -> Table:
    """Return the table of one set of logits."""
    shown = Table(title=title)
    shown.add_column("codec")
    for column in ("bytes a row", "KL T=1 mean", "p999", "worst", "KL T=4 mean", "agreement", "write", "read MB/s"):
        shown.add_column(column, justify="right")
    for each in found:
        keys = ("kl_t1_mean", "kl_t1_p999", "kl_t1_worst", "kl_t4_mean")
        errors = [f"{each.error[key]:.1e}" for key in keys]
        agreement = f"{each.error['agreement']:.5f}"
        speeds = [f"{speed:.0f}" for speed in (each.write_speed, each.read_speed)]
        shown.add_row(words(each.codec), f"{each.row_bytes:.2f}", *errors, agreement, *speeds)
    return shown


def judge(mark: Mark, found: list[Measured], console: Console) -> bool:
    """Print which codec reaches a mark with the fewest bytes; return whether one does."""
    within = [each for each in found if each.kl <= mark.kl]
    best = min(within, key=lambda each: each.row_bytes)
    is_met = best.row_bytes <= mark.row_bytes
    console.print(
        f"{'met' if is_met else 'MISSED'}: C = {mark.num_classes}, at most {mark.row_bytes:g} bytes a row at a mean KL "
        f"of {mark.kl:g}: {words(best.codec)} has {best.row_bytes:.2f} at {best.kl:.1e}"
    )
    return is_met


def bench(title: str, logits: Tensor, console: Console) -> bool:
    """Print the table of one set of logits and its marks; return whether all are met."""
    found = [measure(codec, logits) for codec in SETTINGS]
    console.print(table(title, found))
    changed = [words(e.codec) for e in found if e.kl < EXACT_BELOW and e.error["agreement"] < 1]
    if changed:
        console.print(f"MISSED: first choices changed by {', '.join(changed)}")
    marks = [judge(mark, found, console) for mark in MARKS if mark.num_classes == logits.shape[-1]]
    return all(marks) and not changed


def chunk(logits: Tensor) -> Tensor:
    """Return as many rows as a store would put into one chunk, about."""
    return logits[: min(16384, (1 << 22) // logits.shape[-1])].float()


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logits", nargs="+", default=[], metavar="FILE.npy")
    files = parser.parse_args().logits
    torch.set_num_threads(1)
    sets = {file: chunk(torch.from_numpy(np.load(file))) for file in files}
    sets = sets or {f"mixture, C = {size}": chunk(mixture(16384, size)) for size in (1000, 10)}
    console = Console(width=130)
    are_met = [bench(title, logits, console) for title, logits in sets.items()]
    sys.exit(0 if all(are_met) else 1)


if __name__ == "__main__":
    main()
