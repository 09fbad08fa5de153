"""The dump: one teacher answers on every row of the plan, once, into its store.

With folds, its labelled train rows are answered on once more, each by a model that was not trained on it: what is
fitted on those answers does not take memory for knowledge.
"""

from pipeline.dump.asking import FoldModels, answer, row_arrays
from pipeline.dump.config import VERSION, split_shapes, teacher_layout, teacher_store_config
from pipeline.dump.filling import dump, held_out_figures, open_writer

__all__ = [
    "VERSION",
    "FoldModels",
    "answer",
    "dump",
    "held_out_figures",
    "open_writer",
    "row_arrays",
    "split_shapes",
    "teacher_layout",
    "teacher_store_config",
]
