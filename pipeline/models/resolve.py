"""From a recipe's words to a model: a zoo name, `torchvision:resnet18`, or `package.module:attribute`.

Names and options are checked against the builder's signature without building, so that a recipe's faults can all be
told at once and long before the first epoch. The trade: an import path is imported to be checked, and whatever only
the builder can judge (heads that do not divide the width) is found when it is built.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torchvision
from torch import Tensor, nn

from pipeline.errors import StillroomError, near_names, unknown_name
from pipeline.models.ensembles import NETWORK_OPTIONS, network_parameters
from pipeline.models.table_estimators import CLASSES, class_of
from pipeline.models.trial import check_outputs
from pipeline.models.zoo import REGRESSORS, ZOO, check_reads

SET_BY_STILLROOM = ("num_classes", "in_shape", "where")  # follow from the data set: never a model's own option


class Builder(NamedTuple):
    """A spec, resolved: `make(num_classes=, in_shape=, **options)`, and the parameters that options are checked by."""

    make: Callable[..., Any]
    parameters: Mapping[str, inspect.Parameter]


class GreyAsColour(nn.Module):
    """A network for colour pictures that takes grey ones too, and answers with logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1 or 3, H, W] -> logits [B, num_classes]."""
        answer = self.network(x.expand(-1, 3, -1, -1))
        # GoogLeNet and Inception wrap their logits in a tuple with auxiliary ones while training
        return answer if isinstance(answer, Tensor) else answer.logits


def build_model(
    spec: str,
    /,
    *,
    num_classes: int,
    in_shape: tuple[int, ...],
    where: str = "model",
    takes_regressors: bool = False,
    is_real: bool = False,
    out_shape: tuple[int, ...] | None = None,
    **options: Any,
) -> Any:
    """Return the nn.Module (weights drawn from torch's generator) or the scikit-learn estimator that `spec` names.

    `in_shape` is that of one sample's input: (C, H, W) of a picture, (L,) of words, (D,) of a vector, () of a text;
    `out_shape` that of its outputs, (num_classes,) by default. An estimator is a classifier, or also a regressor where
    the caller takes them; where real numbers are asked for, it is a regressor, one for each number.
    Raises StillroomError for an unknown name or option, inputs that the model can't read, a builder that fails, and one
    that returns something else.
    """
    builder = find_builder(spec, where)
    if faults := option_faults(spec, builder, options, where):
        raise StillroomError("\n".join(faults))
    check_reads(spec, in_shape, where)
    try:
        model = builder.make(num_classes=num_classes, in_shape=in_shape, **options)
    except StillroomError as error:  # a message that says it all
        raise StillroomError(f"{where}: {error}") from error
    except Exception as error:  # the builder may be anybody's code
        raise StillroomError(
            f"{where}: {spec} with options {options!r} failed: {describe(error)}; expected a model; change the options"
        ) from error
    if is_real and not isinstance(model, nn.Module):
        return _real_estimator(spec, model, where)
    if not (isinstance(model, nn.Module) or is_estimator(model) or (takes_regressors and is_regressor(model))):
        raise StillroomError(
            f"{where}: {spec} returned a {type(model).__name__}; expected a torch.nn.Module, or a scikit-learn "
            "estimator with fit and predict_proba; return one of these"
        )
    if isinstance(model, nn.Module):
        check_outputs(model, shape=out_shape or (num_classes,), in_shape=in_shape, where=where)
    return model


def _real_estimator(spec: str, model: Any, where: str) -> Any:
    """Return an estimator that answers with several numbers. Raises StillroomError for one of classes, or none."""
    from pipeline.models.regressors import AsRead, PerOutput

    if is_estimator(model) or not is_regressor(model):
        raise StillroomError(
            f"{where}: {spec} answers with classes; expected a model of real numbers, which the data asks for; name a "
            f"network, a scikit-learn regressor or one of {', '.join(sorted(REGRESSORS))}"
        )
    return model if isinstance(model, AsRead | PerOutput) else PerOutput(model)


def check_model(spec: str, options: Mapping[str, Any], where: str) -> list[str]:
    """Return what is wrong with a model's name and options, without building it; empty when nothing is."""
    try:
        builder = find_builder(spec, where)
    except StillroomError as error:
        return [str(error)]
    return option_faults(spec, builder, options, where)


def model_options(spec: str, options: Mapping[str, Any], where: str) -> list[str]:
    """Return the options that a model names, as far as they are known; none of one that isn't there."""
    try:
        parameters = known_parameters(spec, find_builder(spec, where), options, where)
    except StillroomError:
        return []
    return [name for name, parameter in parameters.items() if is_keyword(parameter)]


def is_regressor(model: object) -> bool:
    """Return whether this is a scikit-learn estimator that predicts numbers: an instance with `fit` and `predict`."""
    return not isinstance(model, type) and all(callable(getattr(model, name, None)) for name in ("fit", "predict"))


def is_estimator(model: object) -> bool:
    """Return whether this is a scikit-learn classifier: an instance with `fit` and `predict_proba`."""
    methods = (getattr(model, name, None) for name in ("fit", "predict_proba"))
    return not isinstance(model, type) and all(callable(method) for method in methods)


# -- names ------------------------------------------------------------------------------------------------------------


def find_builder(spec: str, where: str) -> Builder:
    """Return the builder that a spec names. Raises StillroomError with the near names where there is none."""
    prefix, colon, name = spec.partition(":")
    if colon:
        return torchvision_builder(name, where) if prefix == "torchvision" else imported_builder(prefix, name, where)
    if spec not in ZOO:
        raise unknown_name(where, "model", spec, [*ZOO, "torchvision:NAME", "package.module:attribute"])
    return Builder(ZOO[spec], inspect.signature(class_of(spec) if spec in CLASSES else ZOO[spec]).parameters)


def torchvision_builder(name: str, where: str) -> Builder:
    """Return the builder of one of torchvision's classifiers, with fresh weights, for grey and colour pictures."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown_name(where, "torchvision model", name, known)

    def make(*, num_classes: int, in_shape: tuple[int, ...], **options: Any) -> nn.Module:
        if len(in_shape) != 3:
            raise StillroomError(f"{name} reads pictures [C, H, W]; found {tuple(in_shape)}; choose another model")
        if in_shape[0] not in (1, 3):
            raise ValueError(f"pictures of {in_shape[0]} channels, where torchvision's models take 1 or 3")
        return GreyAsColour(torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options))

    # torchvision's builders hand **kwargs on to the class they are annotated to return: it knows the options' names.
    # What it requires, the builder has set, or defaults (image_size), so a recipe need not.
    network_class = inspect.signature(torchvision.models.get_model_builder(name)).return_annotation
    parameters = inspect.signature(network_class).parameters
    return Builder(make, {key: p.replace(default=None) if is_required(p) else p for key, p in parameters.items()})


def imported_builder(module_name: str, attribute: str, where: str) -> Builder:
    """Return the builder at `module_name:attribute`. Raises StillroomError where there is none."""
    module = import_module(module_name, where)
    if not hasattr(module, attribute):
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise unknown_name(where, f"attribute of {module_name}", attribute, public)
    found = getattr(module, attribute)
    if not callable(found) or isinstance(found, nn.Module):
        raise StillroomError(
            f"{where}: {module_name}:{attribute} is a {type(found).__name__}; expected a class, or a function that "
            "returns a model; name one of these"
        )
    parameters = signature_parameters(found)
    takes = shape_parameters(found, parameters)

    def make(*, num_classes: int, in_shape: tuple[int, ...], **options: Any) -> Any:
        shapes = {"num_classes": num_classes, "in_shape": in_shape}
        return found(**{name: shapes[name] for name in takes}, **options)

    return Builder(make, parameters)


def import_module(name: str, where: str) -> ModuleType:
    """Return the module. Raises StillroomError when there is none, or when its own code fails."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # the module may be anybody's code
        # A module that exists but misses one of its own imports is not a mistyped name.
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise unknown_module(error.name, where) from None
        raise StillroomError(
            f"{where}: importing {name!r} failed: {describe(error)}; expected package.module:attribute; mend the module"
        ) from error


def unknown_module(name: str, where: str) -> StillroomError:
    """Return the error for a module that does not exist, with the near names beside it."""
    parent, _, child = name.rpartition(".")
    if parent:
        path = getattr(importlib.import_module(parent), "__path__", [])
        return unknown_name(where, f"module of {parent}", child, module_names(path))
    close = near_names(child, module_names(None))
    hint = close if close.startswith("did you mean") else "install it, or set PYTHONPATH to its folder"
    return StillroomError(f"{where}: unknown module {name!r}; expected one that Python can import; {hint}")


def module_names(path: list[str] | None) -> list[str]:
    """Return the public modules in a package's folders; None asks for the top level."""
    return [module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_")]


# -- options ----------------------------------------------------------------------------------------------------------


def option_faults(spec: str, builder: Builder, options: Mapping[str, Any], where: str) -> list[str]:
    """Return a message for each option that is unknown, missing, or of another type than the signature says."""
    place = f"{where} ({spec})"
    try:
        parameters = known_parameters(spec, builder, options, where)
    except StillroomError as error:
        return [str(error)]
    own = {name: p for name, p in parameters.items() if name not in SET_BY_STILLROOM}
    missing = [name for name, parameter in own.items() if is_required(parameter) and name not in options]
    faults = [f"{place}: option {name!r} is missing; expected a value; add it" for name in missing]
    return faults + [fault for name, value in options.items() if (fault := option_fault(place, own, name, value))]


def known_parameters(
    spec: str, builder: Builder, options: Mapping[str, Any], where: str
) -> Mapping[str, inspect.Parameter]:
    """Return what options are checked by: for an ensemble of the zoo, also those of the network that they name.

    Raises StillroomError where there is no such network.
    """
    option = NETWORK_OPTIONS.get(spec)
    if option is None:
        return builder.parameters
    own = {key: p for key, p in builder.parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    name = options.get(option, own[option].default)
    # a name that is no string is told as an option of the wrong type
    return {**network_parameters(name, f"{where} ({spec})"), **own} if isinstance(name, str) else builder.parameters


def option_fault(place: str, own: Mapping[str, inspect.Parameter], name: str, value: Any) -> str | None:
    """Return what is wrong with one option, or None."""
    if name in SET_BY_STILLROOM:
        return f"{place}: option {name!r} is given; expected only the model's own, for Stillroom sets it; remove it"
    if name in own and is_keyword(own[name]):
        return type_fault(place, own[name], value)
    if takes_any_keyword(own):
        return None
    known = [key for key, parameter in own.items() if is_keyword(parameter)]
    return str(unknown_name(place, "option", name, known))


def type_fault(place: str, parameter: inspect.Parameter, value: Any) -> str | None:
    """Return the fault of a value whose annotation is a plain number or string and which is not one, or None."""
    wanted = parameter.annotation
    accepted = {int: (int,), float: (int, float), str: (str,)}.get(wanted)
    if accepted is None or (isinstance(value, accepted) and not isinstance(value, bool)):
        return None
    return f"{place}: {parameter.name} = {value!r}; expected {wanted.__name__}; change it"


def signature_parameters(found: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return a builder's parameters; one written in C without a signature takes any keyword."""
    try:
        return inspect.signature(found).parameters
    except ValueError:
        return {"options": inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)}


def shape_parameters(found: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """Return which of num_classes and in_shape to call the builder with: those it names, and in one case another.

    **kwargs is taken to accept num_classes, the word that timm and torchvision share, but not in_shape, which is
    Stillroom's own; an estimator class learns the number of classes from the labels.
    """
    named = [name for name in ("num_classes", "in_shape") if name in parameters and is_keyword(parameters[name])]
    estimator_class = isinstance(found, type) and hasattr(found, "fit")
    if "num_classes" not in named and takes_any_keyword(parameters) and not estimator_class:
        return ["num_classes", *named]
    return named


def is_keyword(parameter: inspect.Parameter) -> bool:
    """Return whether a value can be given by this parameter's name."""
    return parameter.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def is_required(parameter: inspect.Parameter) -> bool:
    """Return whether a call must name this parameter."""
    return is_keyword(parameter) and parameter.default is inspect.Parameter.empty


def takes_any_keyword(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Return whether the signature ends in **kwargs."""
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())


def describe(error: Exception) -> str:
    """Return an exception's type and words."""
    return f"{type(error).__name__}: {error}"
