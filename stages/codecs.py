"""codecs: what each codec would make of the teachers' real answers, before anything is dumped."""

import time
from collections.abc import Callable, Mapping

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pipeline.encoding import measure_codecs, sample_answers
from pipeline.store.codecs import CODECS, auto_candidates, codec_json
from pipeline.store.codecs.base import Codec
from pipeline.store.codecs.feature_error import measure_feature_error
from pipeline.store.codecs.features import FEATURE_CODECS, feature_codec_json
from pipeline.views import RowKeys
from stages import data, teachers
from stages.asks import refuse_others
from stages.recipe import TeacherEntry
from stages.workspace import Workspace

REPEATS = 5
WIDTH = 140


def run(ws: Workspace) -> None:
    """Print a table of codecs for each teacher's logits, and one for each layer's features."""
    refuse_others(ws.recipe, "codecs")
    data.run(ws)
    for entry in ws.recipe.teacher:
        teachers.ensure(ws, entry)
    for entry in ws.recipe.teacher:
        teacher = teachers.load(ws, entry, layers=ws.recipe.logits.features)
        replayer = ws.replayer_of(entry.reads)
        answers, rows = sample_answers(teacher, replayer, ws.task.shapes, ws.recipe.logits.batch_size)
        console = ws.console if ws.console.is_terminal else Console(width=WIDTH)  # a log has no edge to cut figures at
        console.print(logits_table(entry, answers.logits, rows))
        for layer, values in answers.features.items():
            console.print(features_table(entry, layer, values))


def logits_table(entry: TeacherEntry, logits: Tensor, rows: RowKeys) -> Table:
    """Return what each codec makes of these logits [n, C]."""
    num_classes = logits.shape[-1]
    title = f"{entry.name}: logits of {len(logits):,} rows, {num_classes} classes"
    table = Table("codec", title=title, title_justify="left", box=SIMPLE)
    for column in ("B/row", "KL T=1", "99.9 %", "worst", "KL T=4", "99.9 %", "worst", "top-1", "enc MB/s", "dec MB/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for measured in sorted(measure_codecs(logits, rows, every_codec(num_classes)), key=lambda m: m.bytes_per_row):
        error = measured.error
        kls = [f"{error[f'kl_t{t}_{of}']:.1e}" for t in (1, 4) for of in ("mean", "p999", "worst")]
        speeds = [f"{speed:,.0f}" for speed in _speeds(measured.codec, logits, rows)]
        agreement = f"{error['agreement']:.5f}"
        table.add_row(_text(codec_json(measured.codec)), f"{measured.bytes_per_row:,.1f}", *kls, agreement, *speeds)
    return table


def features_table(entry: TeacherEntry, layer: str, values: Tensor) -> Table:
    """Return what each codec makes of a layer's features [n, D]: fitted on half of the rows, judged on the rest."""
    title = f"{entry.name}: features of {layer}, D = {values.shape[1]}"
    table = Table("codec", title=title, title_justify="left", box=SIMPLE)
    for column in ("B/row", "relative error", "error of distances"):
        table.add_column(column, justify="right")
    for codec in FEATURE_CODECS.values():
        error = measure_feature_error(codec().fit(values[::2]), values[1::2])
        relative = f"{error['relative_error']:.2%}" if "relative_error" in error else "no way back"
        described = _text(feature_codec_json(codec()))
        table.add_row(described, f"{error['row_bytes']:,.0f}", relative, f"{error['distance_error']:.2%}")
    return table


def every_codec(num_classes: int) -> list[Codec]:
    """Return each codec with its defaults, and those that `auto` tries, each once."""
    codecs = [*(kind() for kind in CODECS.values()), *auto_candidates(num_classes)]
    return list(dict.fromkeys(codecs))


def _speeds(codec: Codec, logits: Tensor, rows: RowKeys) -> tuple[float, float]:
    """Return MB of float32 logits encoded and decoded a second, the median of a few runs."""
    stored, num_classes = codec.encode(logits, rows), logits.shape[-1]
    seconds = (_seconds(lambda: codec.encode(logits, rows)), _seconds(lambda: codec.decode(stored, num_classes)))
    return logits.nbytes / 1e6 / seconds[0], logits.nbytes / 1e6 / seconds[1]


def _seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return torch.tensor(times).median().item()


def _text(described: Mapping[str, object]) -> str:
    options = ", ".join(f"{key}={value}" for key, value in described.items() if key != "kind")
    return f"{described['kind']} {options}".strip()
