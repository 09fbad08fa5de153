"""Students as torch.export programs: graph and weights in one .pt2 file, which needs torch and no model code."""

from pathlib import Path

import torch
from torch import Tensor, fx, nn

from pipeline.errors import StillroomError
from pipeline.export.deployed import TOLERANCE, Model, check_answers, first_line, removed_on_failure
from pipeline.models.trial import in_eval_mode


def export_program(module: nn.Module, example: Tensor, path: Path, *, tolerance: float = TOLERANCE) -> float:
    """Write the module as a .pt2 file for any number of pictures, load it again and compare.

    `example` are real pictures [N >= 2, C, H, W] of the type that the file will take. Returns the largest difference
    of log-probabilities. Raises: StillroomError, leaving no file, when the module can't be traced or answers differ.
    """
    program = traced(module, example, path)
    with removed_on_failure(path), in_eval_mode(module):
        torch.export.save(program, path)
        return check_answers(path, load_program(path), module, example, tolerance)


def load_program(path: Path) -> Model:
    """Return the model of a .pt2 file. Raises: StillroomError when it is none."""
    try:
        return torch.export.load(path).module()
    except Exception as error:  # the archive's readers fail in many ways
        raise StillroomError(
            f"{path}: cannot be loaded ({first_line(error)}); expected a torch.export program; export it again"
        ) from error


def traced(module: nn.Module, example: Tensor, where: Path) -> torch.export.ExportedProgram:
    """Return the module's graph in evaluation mode, its number of pictures free and nothing of this machine in it.

    Raises: StillroomError when torch.export can't follow the module, or only for one number of pictures.
    """
    if len(example) < 2:
        raise ValueError(f"{len(example)} example pictures; expected at least two, torch.export takes 1 for a constant")
    blank = torch.zeros_like(example[:2])  # example inputs are written into the file: no real pictures
    batch = torch.export.Dim("batch", min=1)
    try:
        with in_eval_mode(module), torch.no_grad():
            program = torch.export.export(module, (blank,), dynamic_shapes=({0: batch},))
    except Exception as error:  # the module may be anybody's code
        raise StillroomError(
            f"{where}: torch.export failed ({first_line(error)}); expected a network whose graph depends on neither "
            "the pixels nor the number of pictures; change the model"
        ) from error
    graphs = [graph for graph in program.graph_module.modules() if isinstance(graph, fx.GraphModule)]
    for node in (node for graph in graphs for node in graph.graph.nodes):
        node.meta.pop("stack_trace", None)  # it names folders of whoever exports
    return program
