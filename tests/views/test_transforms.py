"""Laws over the whole of TRANSFORMS and both mixes, and goldens that fail when pixels change without a new version."""

import numpy as np
import pytest
import torch
from toys import ALONE, TORCHVISION, make_pixels, sha256

from pipeline.errors import StaleStoreError, StillroomError
from pipeline.views import TRANSFORMS, Mix, parse_mix, parse_transforms, transform_from_spec
from pipeline.views.draws import row_words
from pipeline.views.specs import spec_of
from pipeline.views.torchvision_pipeline import TorchvisionPipeline
from pipeline.views.transforms import Brightness, Contrast, Crop, Erase, Flip, Rotate, Shift, as_float

over_all = pytest.mark.parametrize("name", TRANSFORMS)
ENTRIES = {**{name: entries[0] for name, entries in ALONE.items()}, "torchvision": TORCHVISION}


def made(name):
    return parse_transforms([ENTRIES[name]])[0]


def drawn(transform, count, seed=3):
    return transform.parameters(row_words(seed, np.arange(count), 1, transform.num_words))


def pictures(count=20, shape=(3, 12, 10)):
    return torch.from_numpy(make_pixels(count, 1, shape))


def applied(transform, images, parameters):
    return transform.apply(images, torch.as_tensor(parameters, dtype=torch.float64))


# -- laws -------------------------------------------------------------------------------------------------------------


@over_all
@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 12, 10), (1, 9, 16)])
@pytest.mark.parametrize("as_floats", [False, True])
def test_shape_stays_and_pixels_stay_pixels(name, shape, as_floats):
    transform, images = made(name), pictures(20, shape)
    before = images.clone()
    out = applied(transform, as_float(images) if as_floats else images, drawn(transform, 20))
    assert out.shape == images.shape
    assert out.dtype in ({torch.float32} if as_floats else {torch.float32, torch.uint8})
    assert as_float(out).min() >= 0
    assert as_float(out).max() <= 1 + 1e-6
    assert torch.equal(images, before)


@over_all
def test_most_pictures_really_change(name):
    transform, images = made(name), pictures(64)
    out = applied(transform, images, drawn(transform, 64))
    changed = (as_float(out) != as_float(images)).flatten(1).any(1)
    assert changed.float().mean() > 0.3


@over_all
@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 224, 224)])
def test_a_rows_bits_do_not_depend_on_its_batch_or_the_threads(name, shape):
    transform, images = made(name), pictures(9, shape)
    parameters = torch.from_numpy(drawn(transform, 9))
    together, backwards = transform.apply(images, parameters), torch.arange(8, -1, -1)
    try:
        torch.set_num_threads(2)  # a sum over one large picture is then split between them
        alone = torch.cat([transform.apply(images[i : i + 1], parameters[i : i + 1]) for i in range(9)])
        turned = transform.apply(images[backwards], parameters[backwards])
    finally:
        torch.set_num_threads(1)
    assert torch.equal(alone, together)
    assert torch.equal(turned, together[backwards])


@pytest.mark.parametrize("name", ENTRIES)
def test_a_spec_makes_the_same_transform_again(name):
    transform = made(name)
    assert transform_from_spec(spec_of(transform)) == transform


@pytest.mark.parametrize("name", ENTRIES)
def test_another_version_of_the_code_is_stale(name):
    spec = spec_of(made(name))
    with pytest.raises(StaleStoreError, match=r"views: rows were made by .*'version': 99.*; dump them again"):
        transform_from_spec({**spec, "version": 99})


def test_another_release_of_torchvision_is_stale():
    with pytest.raises(StaleStoreError, match=r"'release': '0\.1'"):
        transform_from_spec({**spec_of(made("torchvision")), "release": "0.1"})


def test_parameters_lie_in_their_range_and_reach_its_ends():
    shifts = drawn(Shift(2), 500)
    assert set(shifts.ravel()) == {0, 1, 2, 3, 4}
    assert set(drawn(Flip(0.5), 500).ravel()) == {0, 1}
    assert drawn(Flip(0), 500).max() == 0
    assert drawn(Flip(1), 500).min() == 1
    turns = drawn(Rotate(15), 500)
    assert -15 <= turns.min() < -14
    assert 14 < turns.max() < 15
    scale, x, y = drawn(Crop(0.5), 500).T
    assert 0.5 <= scale.min() < 0.52
    assert 0.98 < scale.max() < 1
    assert (abs(x) <= 1 - scale).all()
    assert (abs(y) <= 1 - scale).all()
    boxes = drawn(Erase(0.5, 0.4), 500)
    assert boxes.min() >= 0
    assert (boxes[:, :2] + boxes[:, 2:]).max() <= 1
    assert 0.38 < boxes[:, 2:].max() <= 0.4
    assert 0.4 < (boxes[:, 2] == 0).mean() < 0.6
    for factor in (drawn(Brightness(0.2), 500), drawn(Contrast(0.2), 500)):
        assert 0.8 <= factor.min() < 0.81
        assert 1.19 < factor.max() < 1.2


# -- slow references --------------------------------------------------------------------------------------------------


def test_shift_is_a_crop_of_the_padded_picture():
    images, parameters = pictures(5), drawn(Shift(2), 5)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    expected = [
        padded[i, :, int(top) : int(top) + 12, int(left) : int(left) + 10]
        for i, (top, left) in enumerate(parameters.tolist())
    ]
    assert torch.equal(applied(Shift(2), images, parameters), torch.stack(expected))


def test_flip_mirrors_left_to_right():
    image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    assert applied(Flip(), image, [[1]]).tolist() == [[[[2, 1], [4, 3]]]]
    assert applied(Flip(), image, [[0]]).tolist() == image.tolist()


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 6, 10)])
def test_a_turn_by_180_degrees_turns_the_picture_round(shape):
    images = pictures(2, shape)
    out = applied(Rotate(180), images, [[180.0], [0.0]])
    torch.testing.assert_close(out[0], as_float(images[0]).flip(-1, -2), atol=1e-4, rtol=0)
    torch.testing.assert_close(out[1], as_float(images[1]), atol=1e-5, rtol=0)


def test_a_turn_keeps_angles_in_a_picture_that_is_not_square():
    disc = (torch.stack(torch.meshgrid(torch.arange(20) - 9.5, torch.arange(40) - 19.5, indexing="ij")) ** 2).sum(0)
    image = (disc < 64).float()[None, None]
    turned = applied(Rotate(90), image, [[37.0]])
    assert (turned - image).abs().mean() < 0.02


def test_a_crop_of_half_is_that_quarter_enlarged():
    image = torch.arange(16.0).reshape(1, 1, 4, 4) / 16
    out = applied(Crop(), image, [[0.5, -0.5, -0.5]])
    reference = torch.nn.functional.interpolate(image, scale_factor=2, mode="bilinear")[..., :4, :4]
    torch.testing.assert_close(out[..., 1:, 1:], reference[..., 1:, 1:])


def test_erase_blackens_its_box_and_nothing_else():
    image = torch.full((1, 1, 10, 10), 9, dtype=torch.uint8)
    out = applied(Erase(), image, [[0.2, 0.5, 0.3, 0.4]])[0, 0]
    expected = torch.full((10, 10), 9, dtype=torch.uint8)
    expected[2:5, 5:9] = 0
    assert torch.equal(out, expected)


def test_brightness_and_contrast_follow_their_formulas():
    image = torch.tensor([[[[0.2, 0.4], [0.6, 0.8]]]])
    torch.testing.assert_close(applied(Brightness(), image, [[1.5]])[0, 0], torch.tensor([[0.3, 0.6], [0.9, 1.0]]))
    torch.testing.assert_close(applied(Contrast(), image, [[0.5]])[0, 0], torch.tensor([[0.35, 0.45], [0.55, 0.65]]))


# -- goldens ----------------------------------------------------------------------------------------------------------

GOLDEN: dict[str, tuple[int, *tuple[str, ...]]] = {
    "shift": (1, "87d7ac9ad22e4b6c"),
    "crop": (1, "5bf925566115380a"),
    "flip": (1, "30454d8c426ed4b4"),
    "rotate": (1, "8ce97424d8898f2e"),
    "erase": (1, "58ff17c673707ca2"),
    "brightness": (1, "ac73c4fa1a55ec91"),
    "contrast": (1, "01a511deb53d553d"),
    "mixup": (1, "681ebf4715b23a3d", "ee1b781f1219a5db"),
    "cutmix": (1, "a95eaf0be872453d", "123a86df5c8e4a8d"),
}


def fixed_pictures():
    """Smooth, so that an ulp in a bilinear sample is far from moving a rounded value."""
    y, x = np.mgrid[:8, :8]
    return torch.from_numpy(np.stack([(x * 28 + y * 3) % 256, (x * y * 5) % 256]).astype(np.uint8)[:, None])


@over_all
def test_the_pixels_are_those_of_this_version(name):
    """When this fails because pixels are meant to change: raise the transform's `version`, then renew the golden."""
    transform = TRANSFORMS[name]()
    out = as_float(applied(transform, fixed_pictures(), drawn(transform, 2, seed=11)))
    found = (transform.version, sha256((out * 1000).round().to(torch.int32)))
    assert found == GOLDEN[name]


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_pixels_are_those_of_this_version(kind):
    mix, images = Mix(kind), as_float(fixed_pictures())
    parameters = torch.from_numpy(drawn(mix, 2, seed=11))
    out, share = mix.apply(images, images.flip(0), parameters)
    found = sha256((out * 1000).round().to(torch.int32)), sha256((share * 1000).round().to(torch.int32))
    assert (mix.version, *found) == GOLDEN[kind]


# -- mixing -----------------------------------------------------------------------------------------------------------


def test_mixup_blends_by_its_share():
    mix, (mine, other) = Mix("mixup"), as_float(pictures(8)).split(4)
    parameters = torch.from_numpy(drawn(mix, 4))
    out, share = mix.apply(mine, other, parameters)
    assert torch.equal(share, parameters[:, 1].float())
    expected = torch.stack([share[i] * mine[i] + (1 - share[i]) * other[i] for i in range(4)])
    torch.testing.assert_close(out, expected)


def test_cutmix_pastes_one_box_and_counts_its_pixels():
    mix, (mine, other) = Mix("cutmix"), as_float(pictures(80, (1, 12, 12))).split(40)
    out, share = mix.apply(mine, other, torch.from_numpy(drawn(mix, 40)))
    pasted = (out != mine)[:, 0]
    assert torch.equal(torch.where(pasted, other[:, 0], mine[:, 0]), out[:, 0])
    for inside, kept in zip(pasted, share, strict=True):
        rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
        height, width = (int(a.max() - a.min() + 1) if len(a) else 0 for a in (rows, columns))
        # noise may agree by chance on a pixel inside the box, never on many
        assert abs(inside.sum().item() - height * width) <= 3
        assert abs((1 - kept.item()) * 144 - height * width) <= 14


def test_the_share_of_mixing_is_beta_distributed():
    for alpha, spread in ((1.0, 1 / 12), (0.4, 1 / (4 * 1.8)), (8.0, 1 / (4 * 17))):
        share = drawn(Mix(alpha=alpha), 4000)[:, 1]
        assert abs(share.mean() - 0.5) < 0.03
        assert abs(share.var() - spread) < 0.01


# -- faults -----------------------------------------------------------------------------------------------------------

FAULTS = [
    ({"kind": "flp"}, r"views.transforms\[0\]: unknown transform 'flp'; expected one of 8; did you mean 'flip'"),
    ({}, r"unknown transform 'None'"),
    ({"kind": "shift", "pixel": 1}, r"\[0\]: shift found option 'pixel'; .*did you mean 'pixels'"),
    ({"kind": "shift", "pixels": -1}, r"\[0\].pixels: found -1; expected a number of 0 or more"),
    ({"kind": "shift", "pixels": 1.5}, r"\[0\].pixels: found 1.5; expected a whole number"),
    ({"kind": "shift", "pixels": "2"}, r"\[0\].pixels: found '2'; expected a number"),
    ({"kind": "flip", "probability": 1.5}, r"\[0\].probability: found 1.5; expected at most 1"),
    ({"kind": "flip", "probability": True}, r"\[0\].probability: found True; expected a number"),
    ({"kind": "rotate", "degrees": float("nan")}, r"\[0\].degrees: found nan; expected a number"),
    ({"kind": "rotate", "degrees": float("inf")}, r"\[0\].degrees: found inf; expected a number"),
    ({"kind": "torchvision"}, r"\[0\]: torchvision found \{\}; expected options it accepts"),
    ({"kind": "torchvision", "name": "RandomAfine"}, r"v2 class 'RandomAfine'; .*did you mean 'RandomAffine'"),
    ({"kind": "torchvision", "name": "RandomAffine"}, r"RandomAffine found \{\}; expected options it accepts"),
    ({"kind": "torchvision", "name": "no_such:thing"}, r"found 'no_such:thing'; expected module:attribute"),
    ({"kind": "torchvision", "name": "math:pi"}, r"'math:pi' is a float; expected a callable"),
]


@pytest.mark.parametrize(("entry", "message"), FAULTS)
def test_a_wrong_transform_is_told_with_its_place(entry, message):
    with pytest.raises(StillroomError, match=message):
        parse_transforms([entry])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "mixip"}, r"views.mix: unknown mix 'mixip'; .*did you mean 'mixup'"),
        ({"view": 1}, r"views.mix: found option 'view'; .*did you mean 'views'"),
        ({"views": 4}, r"views.mix.views: found 4; expected 1 to 3, the views of the plan"),
        ({"views": 0}, r"views.mix.views: found 0; expected 1 to 3"),
        ({"alpha": 0}, r"views.mix.alpha: found 0; expected a number above 0"),
        ({"alpha": float("nan")}, r"views.mix.alpha: found nan; expected a number above 0"),
    ],
)
def test_a_wrong_mix_is_told_with_its_place(options, message):
    with pytest.raises(StillroomError, match=message):
        parse_mix(options, 3)


def test_a_pipeline_that_changes_the_shape_is_refused():
    resize = TorchvisionPipeline.from_options("Resize", size=[6, 6])
    with pytest.raises(StillroomError, match=r"Resize gave pictures of shape \(3, 6, 6\); expected \(3, 12, 10\)"):
        applied(resize, pictures(2), drawn(resize, 2))


def test_seeds_of_a_torchvision_pipeline_are_exact_in_a_float():
    pipeline = made("torchvision")
    ends = pipeline.parameters(np.array([[0xFFFFFFFF, 0xFFFFFFFF], [0, 1], [1, 0]], np.uint32))[:, 0]
    assert ends.max() < 2**53
    assert ends.tolist()[1:] == [1, 2**21]
