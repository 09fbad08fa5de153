"""ONNX files as teachers: the answers of the network they were exported from, and a clear word for any other file."""

import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from toys import CLASSES, SHAPE

from pipeline.errors import StillroomError
from pipeline.models import build_model
from pipeline.teachers import OnnxTeacher
from pipeline.teachers.onnx import FLOATS, MODEL
from pipeline.teachers.sklearn import PROBABILITY_FLOOR
from pipeline.train import seeded

INPUTS = torch.randn(9, *SHAPE, generator=torch.Generator().manual_seed(0))
WEIGHTS = np.random.default_rng(0).normal(0, 1, (4, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return seeded(lambda: build_model("vgg_small", num_classes=3, in_shape=SHAPE, width=2), 0).eval()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    """The network as somebody else would export it: by torch, for any number of pictures."""
    path = tmp_path_factory.mktemp("exported") / "network.onnx"
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.onnx.export(
        network, (INPUTS,), path, dynamo=True, external_data=False, verbose=False, dynamic_shapes=({0: batch},)
    )
    return path


def linear(path, *, batch="n", width=4, kind=TensorProto.FLOAT, then=(), classes=3, extra=0):
    """A file that answers with x @ WEIGHTS, by onnx's own hands: `then` are operations that follow."""
    numpy_kind = helper.tensor_dtype_to_np_dtype(kind)
    weights = np.resize(WEIGHTS, (width, classes)).astype(numpy_kind)
    nodes, last = [helper.make_node("MatMul", ["x", "w"], ["y0"])], "y0"
    for number, operation in enumerate(then, 1):
        nodes.append(helper.make_node(operation, [last], [f"y{number}"]))
        last = f"y{number}"
    names = ["x", *(f"x{number}" for number in range(1, 1 + extra))]
    inputs = [helper.make_tensor_value_info(name, kind, [batch, width]) for name in names]
    outputs = [helper.make_tensor_value_info(last, kind, [batch, classes])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


VECTORS = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
EXPECTED = VECTORS.numpy() @ WEIGHTS


def test_it_answers_as_the_network_it_was_exported_from(network, exported):
    teacher = OnnxTeacher(exported, 3, SHAPE, mean=(0.3,), std=(0.2,))
    with torch.no_grad():
        expected = network(INPUTS)
    for rows in (1, 4, 9):
        answers = teacher.predict(INPUTS[:rows])
        assert answers.logits.dtype == torch.float32
        torch.testing.assert_close(answers.logits, expected[:rows], atol=1e-5, rtol=1e-5)
    assert (dict(answers.features), teacher.feature_widths, teacher.head) == ({}, {}, None)


def test_a_copy_answers_with_the_same_bits(exported, tmp_path):
    teacher = OnnxTeacher(exported, 3, SHAPE)
    assert teacher.save(tmp_path / "deep") == [MODEL]
    again = OnnxTeacher(tmp_path / "deep" / MODEL, 3, SHAPE)
    assert torch.equal(again.predict(INPUTS).logits, teacher.predict(INPUTS).logits)


def means(path, kind=TensorProto.FLOAT, shape=(3, 2, 2)):
    """A file that answers with the mean of each channel, of which there is one a class."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["y"], axes=[2, 3], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info("x", kind, ["n", *shape])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", shape[0]])]
    graph = helper.make_graph(nodes, "means", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9), path)
    return path


OWN_MEAN, OWN_STD = torch.tensor([0.2, 0.3, 0.4]), torch.tensor([0.1, 0.2, 0.3])
OWN = {"mean": OWN_MEAN.tolist(), "std": OWN_STD.tolist()}


def standardised(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels in 0..1 as a plan's replayer gives them."""
    return (pixels - OWN_MEAN.view(3, 1, 1)) / OWN_STD.view(3, 1, 1)


def test_a_file_of_bytes_gets_the_pixels_as_they_are_in_files(tmp_path):
    pixels = torch.randint(0, 256, (64, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    path = means(tmp_path / "m.onnx", TensorProto.UINT8)
    teacher = OnnxTeacher(path, 3, (3, 2, 2), pictures="bytes", **OWN)
    expected = pixels.float().mean((2, 3))
    torch.testing.assert_close(teacher.predict(standardised(pixels / 255)).logits, expected, atol=1e-4, rtol=0)
    with pytest.raises(StillroomError, match=r"reads tensor\(uint8\); expected .*, or pictures = 'bytes'; set it"):
        OnnxTeacher(path, 3, (3, 2, 2), **OWN)


@pytest.mark.parametrize(
    ("pictures", "mean", "std"),
    [("unit", 0.0, 1.0), ("bytes", 0.0, 1 / 255), ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))],
)
def test_pictures_are_given_in_the_files_own_scale(tmp_path, pictures, mean, std):
    pixels = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(3))
    teacher = OnnxTeacher(means(tmp_path / "m.onnx"), 3, (3, 2, 2), pictures=pictures, **OWN)
    expected = (pixels.mean((2, 3)) - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(teacher.predict(standardised(pixels)).logits, expected, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("batch", ["n", 1, 3, 16])
def test_a_file_of_a_fixed_batch_answers_on_any_number_of_rows(tmp_path, batch):
    teacher = OnnxTeacher(linear(tmp_path / "m.onnx", batch=batch), 3, (4,))
    for rows in (1, 3, 7):
        np.testing.assert_allclose(teacher.predict(VECTORS[:rows]).logits, EXPECTED[:rows], atol=1e-5)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_fractions_are_given_in_the_files_own_width(tmp_path, kind):
    teacher = OnnxTeacher(linear(tmp_path / "m.onnx", kind=kind), 3, (4,))
    answers = teacher.predict(VECTORS).logits
    assert answers.dtype == torch.float32
    np.testing.assert_allclose(answers, EXPECTED, atol=0.05 if kind == TensorProto.FLOAT16 else 1e-5)
    assert len(FLOATS) == 3


def test_words_are_read_as_whole_numbers_and_fractions_are_not(tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["f", "w"], ["y"]),
        ],
        "words",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    teacher, words = OnnxTeacher(tmp_path / "m.onnx", 3, (4,)), torch.arange(8).view(2, 4)
    np.testing.assert_allclose(teacher.predict(words).logits, words.numpy() @ WEIGHTS, atol=1e-5)
    with pytest.raises(StillroomError, match=r"reads tensor\(int64\); found fractions; have 'reads' name another"):
        teacher.predict(VECTORS)
    with pytest.raises(StillroomError, match=r"reads tensor\(float\); found whole numbers"):
        OnnxTeacher(linear(tmp_path / "f.onnx"), 3, (4,)).predict(words)


# -- what the answers are ---------------------------------------------------------------------------------------------


def test_probabilities_and_their_logs_become_log_probabilities_with_the_floor(tmp_path):
    probs = torch.from_numpy(EXPECTED * 6).softmax(-1)
    assert probs.min() < PROBABILITY_FLOOR
    scaled = VECTORS * 6
    for output, then in (("probs", ["Softmax"]), ("log_probs", ["LogSoftmax"])):
        teacher = OnnxTeacher(linear(tmp_path / f"{output}.onnx", then=then), 3, (4,), output=output)
        found = teacher.predict(scaled).logits
        torch.testing.assert_close(found, probs.clamp(min=PROBABILITY_FLOOR).log(), atol=1e-4, rtol=1e-4)


def test_probabilities_that_are_taken_for_logits_and_the_other_way_round_are_refused(tmp_path):
    soft = OnnxTeacher(linear(tmp_path / "soft.onnx", then=["Softmax"]), 3, (4,))  # zeros in: as likely as each other
    with pytest.raises(StillroomError, match=r"numbers in 0..1 that sum to 1; expected logits; set output = 'probs'"):
        soft.predict(VECTORS)
    with pytest.raises(StillroomError, match="that do not sum to 1; expected probabilities; set output = 'logits'"):
        OnnxTeacher(linear(tmp_path / "m.onnx"), 3, (4,), output="probs")


def test_the_first_output_of_numbers_counts(tmp_path):
    path = linear(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("ArgMax", ["y0"], ["label"], axis=1, keepdims=0))
    model.graph.output.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]))
    onnx.save(model, path)
    np.testing.assert_allclose(OnnxTeacher(path, 3, (4,)).predict(VECTORS).logits, EXPECTED, atol=1e-5)
    del model.graph.output[1]
    onnx.save(model, path)
    with pytest.raises(StillroomError, match=r"answers with \['tensor\(int64\)'\]; expected floating numbers \[B, 3\]"):
        OnnxTeacher(path, 3, (4,))


# -- what is no teacher -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "in_shape", "told"),
    [
        (
            {"classes": 5},
            (4,),
            r"answers 2 inputs with \(2, 5\); expected \(2, 3\), a number a class; export the model",
        ),
        ({}, (6,), r"reads inputs of shape \(any, 4\); expected \(any, 6\), what it is given; set data.size"),
        ({}, (1, 2, 2), r"reads inputs of shape \(any, 4\); expected \(any, 1, 2, 2\)"),
        ({}, (), "reads numbers; found text; have 'reads' name an input of numbers"),
        ({"extra": 1}, (4,), r"has 2 inputs, \['x', 'x1'\]; expected one"),
    ],
)
def test_a_file_that_does_not_fit_is_told_before_it_is_asked(tmp_path, options, in_shape, told):
    path = linear(tmp_path / "m.onnx", **options)
    with pytest.raises(StillroomError, match="teacher.net: .*" + told):
        OnnxTeacher(path, 3, in_shape, where="teacher.net")


@pytest.mark.parametrize("content", [b"", b"no model at all", None])
def test_a_file_that_is_no_model_is_told(tmp_path, content):
    path = tmp_path / "m.onnx"
    if content is None:
        content = linear(path).read_bytes()[:-40]
    path.write_bytes(content)
    with pytest.raises(
        StillroomError, match=r"net: .*m.onnx cannot be loaded \(.+\); expected an ONNX model, its weights"
    ):
        OnnxTeacher(path, 3, (4,), where="net")


def test_without_the_package_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(StillroomError, match=r"net: found no onnxruntime .*; run pip install 'stillroom\[onnx\]'"):
        OnnxTeacher(linear(tmp_path / "m.onnx"), 3, (4,), where="net")


def test_it_has_as_many_threads_as_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    teacher = OnnxTeacher(linear(tmp_path / "m.onnx"), len(CLASSES), (4,))
    assert teacher._session.get_session_options().intra_op_num_threads == 3
