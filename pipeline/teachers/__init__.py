"""Teachers: whatever answers on rows. One protocol for torch, scikit-learn, ONNX files and anybody's predictions."""

from pipeline.answers import Answers, Teacher
from pipeline.teachers.onnx import OnnxTeacher
from pipeline.teachers.predictions import Predictions, PredictionsTeacher
from pipeline.teachers.present import SourceTeacher
from pipeline.teachers.regressors import RegressorTeacher, fit_regressor, fit_rows
from pipeline.teachers.sklearn import SklearnTeacher, fit_sklearn
from pipeline.teachers.torch import TorchTeacher, fit_torch
from pipeline.teachers.writers import RULE, RuleTeacher, written_by

__all__ = [
    "RULE",
    "Answers",
    "OnnxTeacher",
    "Predictions",
    "PredictionsTeacher",
    "RegressorTeacher",
    "RuleTeacher",
    "SklearnTeacher",
    "SourceTeacher",
    "Teacher",
    "TorchTeacher",
    "fit_regressor",
    "fit_rows",
    "fit_sklearn",
    "fit_torch",
    "written_by",
]
