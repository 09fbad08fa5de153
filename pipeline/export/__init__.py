"""Students as files that run without Stillroom: torch.export programs and ONNX, checked and measured."""

from pipeline.export.deployed import TOLERANCE, Deployed, Model, answers, check_close
from pipeline.export.measure import Latency, latency, multiply_adds
from pipeline.export.onnx import export_onnx, load_onnx, quantise
from pipeline.export.program import export_program, load_program

__all__ = [
    "TOLERANCE",
    "Deployed",
    "Latency",
    "Model",
    "answers",
    "check_close",
    "export_onnx",
    "export_program",
    "latency",
    "load_onnx",
    "load_program",
    "multiply_adds",
    "quantise",
]
