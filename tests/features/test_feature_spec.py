"""A recipe's words become a feature loss, or an error that names the word."""

from typing import Any

import pytest

from pipeline.errors import StillroomError
from pipeline.features import FEATURE_LOSSES, Crd, Rkd, Srd, parse_feature_loss

WHERE = "student.tiny.features[0]"


def parse(**spec: Any) -> Any:
    return parse_feature_loss(spec, WHERE)


@pytest.mark.parametrize("kind", FEATURE_LOSSES)
def test_a_kind_alone_has_the_sources_weight_and_layers(kind):
    layer = {"layer": "attention:stage1"} if kind == "attention" else {}
    entry = parse(kind=kind, **layer)
    assert type(entry.loss) is FEATURE_LOSSES[kind]
    assert entry.layer == layer.get("layer", "penultimate")
    assert entry.student_layer == ("projected" if kind == "simkd" else entry.layer)
    assert entry.teachers is None
    assert entry.weight == {"srd": 2.0, "crd": 0.8}.get(kind, 1.0)


def test_every_word_is_taken_over():
    spec = {"layer": "stage1", "student_layer": "stage2", "weight": 3, "teachers": ["big", "wide"]}
    entry = parse(kind="rkd", distance=1, angle=0, **spec)
    assert entry.loss == Rkd(distance=1, angle=0)
    assert (entry.layer, entry.student_layer) == ("stage1", "stage2")
    assert (entry.weight, entry.teachers) == (3.0, ("big", "wide"))
    assert Crd(negatives=7).num_negatives == 7
    assert Srd().num_negatives == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, r": unknown feature loss 'None'; expected one of 6"),
        ({"kind": "hints"}, r": unknown feature loss 'hints'; .*did you mean 'hint'"),
        ({"kind": "rkd", "angels": 1}, r": unknown key of feature loss 'rkd' 'angels'; .*did you mean 'angle'"),
        ({"kind": "srd", "wieght": 1}, r": unknown key of feature loss 'srd' 'wieght'; .*did you mean 'weight'"),
        ({"kind": "srd", "layer": 3}, r"\.layer: found 3; expected a layer's name"),
        ({"kind": "srd", "student_layer": ""}, r"\.student_layer: found ''; expected a layer's name"),
        ({"kind": "srd", "weight": True}, r"\.weight: found True; expected a finite number above 0"),
        ({"kind": "srd", "weight": 0}, r"\.weight: found 0; expected a finite number above 0"),
        ({"kind": "srd", "weight": float("nan")}, r"\.weight: found nan"),
        ({"kind": "srd", "teachers": "big"}, r"\.teachers: found 'big'; expected a list of teachers' names"),
        ({"kind": "srd", "teachers": []}, r"\.teachers: found \[\]"),
        ({"kind": "srd", "teachers": ["a", "a"]}, r"\.teachers: found \['a', 'a'\]"),
        ({"kind": "srd", "power": 0.5}, r": features 'srd': power is 0.5; expected a finite number from 1"),
        ({"kind": "rkd", "distance": -1}, r": features 'rkd': distance is -1; expected a finite number from 0"),
        ({"kind": "rkd", "angle": "much"}, r": features 'rkd': angle is 'much'; expected a finite number"),
        ({"kind": "rkd", "angle_rows": 2}, r": features 'rkd': angle_rows is 2; expected a whole number from 3"),
        ({"kind": "crd", "tau": 0}, r": features 'crd': tau is 0; expected a finite number above 0"),
        ({"kind": "crd", "negatives": 1.5}, r": features 'crd': negatives is 1.5; expected a whole number from 1"),
        ({"kind": "crd", "width": False}, r": features 'crd': width is False"),
        ({"kind": "simkd", "hidden": 0}, r": features 'simkd': hidden is 0; expected a whole number from 1"),
        ({"kind": "simkd", "layer": "stage1"}, r": features 'simkd': layer 'stage1', .*leave both out"),
        ({"kind": "simkd", "student_layer": "penultimate"}, r": features 'simkd': .*leave both out"),
        ({"kind": "attention"}, r": features 'attention': layer 'penultimate' is not kept as a map"),
        (
            {"kind": "attention", "layer": "attention:a", "student_layer": "b"},
            r": features 'attention': layer 'b' is not kept as a map; expected 'attention:LAYER'; name 'attention:b'",
        ),
    ],
)
def test_a_wrong_word_is_told(spec, message):
    with pytest.raises(StillroomError, match=r"student\.tiny\.features\[0\]" + message):
        parse_feature_loss(spec, WHERE)
