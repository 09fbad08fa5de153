"""Teachers: whatever answers on rows. One protocol for torch modules and scikit-learn estimators."""

from pipeline.answers import Answers, Teacher
from pipeline.teachers.sklearn import SklearnTeacher, fit_sklearn
from pipeline.teachers.torch import TorchTeacher, fit_torch

__all__ = ["Answers", "SklearnTeacher", "Teacher", "TorchTeacher", "fit_sklearn", "fit_torch"]
