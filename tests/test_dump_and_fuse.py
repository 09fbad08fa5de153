"""What a store holds is what the teacher said and what the fusion made of it, and offline distillation is online's."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import (
    CLASSES,
    SHAPE,
    Killed,
    contents,
    dump_store,
    fuse_store,
    kill_at,
    make_dataset,
    make_encoding,
    make_plan,
    make_teacher,
    small_blocks,
    target_writer,
    teacher_writer,
)

from pipeline import dump, fuse, joined
from pipeline.answers import Answers
from pipeline.calibration import fit_temperature
from pipeline.errors import StaleStoreError, StillroomError
from pipeline.fusion import FUSIONS, Outputs, Target
from pipeline.lineage import fingerprint, read_cost
from pipeline.loader import TargetLoader
from pipeline.losses import kl_divergence
from pipeline.metrics import classification_metrics
from pipeline.models import build_model
from pipeline.store import open_targets, open_teacher
from pipeline.store.verify import verify
from pipeline.train import seeded
from pipeline.views import Replayer, RowKeys

HALF_STEP = 2.0**-11  # fp16 rounds a number by at most this share of it


def every_view(store):
    return [(split, view) for split, (views, _) in store.layout.splits.items() for view in range(views)]


def own_answers(replayer, seed, split, view):
    """What the teacher itself says about all rows of a view."""
    positions = np.arange(len(replayer.plan.splits[split]))
    return make_teacher(seed).predict(replayer.batch(split, view, positions).inputs)


# -- dump -------------------------------------------------------------------------------------------------------------


def test_a_store_holds_the_teachers_own_logits_to_the_codecs_step(stores, replayer):
    for seed, store in enumerate(stores.teachers):
        for split, view in every_view(store):
            own = own_answers(replayer, seed, split, view).logits
            own = own - own.amax(1, keepdim=True)
            assert (store.logits(split, view) - own).abs().le(own.abs() * HALF_STEP + 1e-5).all()
            assert own.abs().max() > 5, "logits that spread too little would prove nothing"


def test_features_are_what_the_classifier_reads(stores, replayer):
    store = stores.teachers[0]
    for split, view in every_view(store):
        own = own_answers(replayer, 0, split, view).features["penultimate"].numpy()
        assert np.array_equal(store.read(split, "features/penultimate", view), own.astype(np.float16))


def test_a_store_knows_its_rows(stores, replayer):
    store = stores.teachers[0]
    for split, view in every_view(store):
        part = replayer.plan.splits[split]
        positions = np.arange(len(part))
        assert np.array_equal(store.read(split, "row_digest", view), replayer.digests(split, view, positions))
        assert np.array_equal(store.read(split, "labels"), part.labels)
        assert np.array_equal(store.read(split, "sample_ids"), part.ids)
    assert store.plan().fingerprint == replayer.plan.fingerprint
    assert store.plan().config == replayer.plan.config


def test_the_manifest_says_what_the_teacher_is_worth(stores, replayer):
    store = stores.teachers[0]
    details = store.manifest.details
    labels = {name: torch.from_numpy(replayer.plan.splits[name].labels) for name in ("calibration", "test")}
    assert details["seed"] == 0
    assert details["temperature"] == pytest.approx(fit_temperature(store.logits("calibration"), labels["calibration"]))
    expected = classification_metrics(store.logits("test").log_softmax(-1), labels["test"])
    assert {name: details["scores"]["test"][name] for name in expected} == pytest.approx(expected)
    cooled = classification_metrics((store.logits("test") / details["temperature"]).log_softmax(-1), labels["test"])
    assert details["scores"]["test"]["calibrated_nll"] == pytest.approx(cooled["nll"])
    assert store.manifest.metrics["codec_error"]["rows"] == store.layout.rows
    assert store.manifest.metrics["codec_error"]["kl_t1_mean"] < 1e-5
    assert read_cost(store.folder)["forward_seconds"] > 0


def test_the_codec_of_the_config_is_the_one_on_disk(replayer, tmp_path):
    store = dump_store(tmp_path / "s", replayer, codec="fp32")
    own = own_answers(replayer, 0, "train", 1).logits
    torch.testing.assert_close(store.logits("train", 1), own - own.amax(1, keepdim=True), atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("number", [0, 3, 8])
def test_a_killed_dump_goes_on_and_ends_with_the_same_bytes(stores, replayer, tmp_path, monkeypatch, number):
    small_blocks(monkeypatch, 16)
    teacher = make_teacher(0)
    encoding = make_encoding(teacher, replayer)
    writer = teacher_writer(tmp_path, replayer, encoding)
    how = {"batch_size": 7, "details": {"seed": 0}}
    with pytest.raises(Killed):
        dump.dump(teacher, replayer, writer, encoding, on_block=kill_at(number, lambda _: None), **how)
    done = dump.dump(teacher, replayer, writer, encoding, **how)
    assert done.blocks == len(writer.layout.blocks) - number - 1
    assert contents(tmp_path) == contents(stores.teachers[0].folder)


class Broken:
    """A teacher whose answers are spoilt on the rows of one block."""

    rows_at_once = None

    def __init__(self, spoil):
        self.spoil, self.teacher = spoil, make_teacher()
        self.feature_widths = self.teacher.feature_widths

    def predict(self, inputs):
        answers = self.teacher.predict(inputs)
        return self.spoil(answers.logits.clone(), answers.features["penultimate"].clone())


SPOILT = {
    "NaN logits": (
        lambda z, f: Answers(z.index_fill(0, torch.tensor([2]), math.nan), {"penultimate": f}),
        r"teacher\.\w+ on train view 0 rows 0-40: 1 of 40 rows have NaN or infinite logits \(first: row 2\)",
    ),
    "features beyond fp16": (
        lambda z, f: Answers(z, {"penultimate": f.index_fill(0, torch.tensor([5]), 1e6)}),
        r"teacher\.\w+ on train view 0 rows 0-40: penultimate: channel 0 is .* in row 5; expected at most 65504",
    ),
    "another number of classes": (
        lambda z, f: Answers(z[:, :2], {"penultimate": f}),
        r"teacher\.\w+ on train view 0 rows 0-40: answered with 2 classes; expected 3",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_spoilt_answers_stop_the_dump_and_are_never_stored(replayer, tmp_path, what):
    spoil, message = SPOILT[what]
    encoding = make_encoding(make_teacher(), replayer)
    writer = teacher_writer(tmp_path, replayer, encoding)
    with pytest.raises(StillroomError, match=message):
        dump.dump(Broken(spoil), replayer, writer, encoding, details={})
    assert list((tmp_path / "records").iterdir()) == []
    assert not (tmp_path / "manifest.json").exists()


# -- fuse -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", FUSIONS)
@pytest.mark.parametrize("calibrate", [True, False])
def test_a_target_store_holds_what_fusing_the_stored_logits_gives(stores, replayer, tmp_path, strategy, calibrate):
    if strategy == "log_pool" and not calibrate:
        pytest.skip("as they are, these teachers are worse than a guess, which log_pool refuses")
    targets = fuse_store(tmp_path / "t", stores.teachers, strategy=strategy, calibrate=calibrate)
    labels = torch.from_numpy(targets.plan().splits["calibration"].labels)
    temperatures = [store.manifest.details["temperature"] if calibrate else 1.0 for store in stores.teachers]

    def stacked(split, view=0):
        pairs = zip(stores.teachers, temperatures, strict=True)
        return torch.stack([store.logits(split, view) / temperature for store, temperature in pairs])

    def rows(split, view=0):
        part = replayer.plan.splits[split]
        logits = stacked(split, view)
        hides = split != "train" or replayer.plan.is_mixed(split, view)
        seen = torch.full((len(part),), -1) if hides else torch.from_numpy(part.labels)
        features = tuple(store.features(split, "penultimate", view) for store in stores.teachers)
        return Outputs(logits, seen, {"penultimate": features}, RowKeys(replayer.plan.seed, view, part.ids))

    fitted = Target(FUSIONS[strategy]()).fit(replace(rows("calibration"), labels=labels))
    assert targets.manifest.details["fitted"] == fitted.fitted()
    for split, view in every_view(targets):
        for temperature in (1.0, 4.0):
            fused = fitted.fuse(rows(split, view), temperature=temperature)
            found = targets.log_probs(split, view, temperature=temperature)
            step = fused.log_probs.abs() * HALF_STEP + HALF_STEP * fused.log_probs.abs().amax(1, keepdim=True) + 1e-5
            assert (found - fused.log_probs).abs().le(step).all()
            torch.testing.assert_close(found.exp().sum(-1), torch.ones(len(found)))
        at_one = fitted.fuse(rows(split, view), temperature=1.0)
        assert np.array_equal(targets.read(split, "weights", view), at_one.weights.half().numpy())
        assert np.array_equal(targets.read(split, "disagreement", view), at_one.disagreement.numpy())


def test_a_target_store_knows_its_rows_teachers_and_worth(stores, replayer):
    targets = stores.targets
    for split, view in every_view(targets):
        positions = np.arange(len(replayer.plan.splits[split]))
        assert np.array_equal(targets.read(split, "row_digest", view), replayer.digests(split, view, positions))
    assert targets.plan().config == replayer.plan.config
    assert targets.teachers == ("a", "b")
    assert targets.classes == CLASSES
    parents = [{"name": store.name, "store": store.fingerprint} for store in stores.teachers]
    assert targets.manifest.config["teachers"] == parents
    assert targets.attributes["fingerprint"] == targets.fingerprint == fingerprint(targets.manifest.config)
    scores = targets.manifest.details["scores"]["test"]
    labels = torch.from_numpy(replayer.plan.splits["test"].labels)
    assert scores["nll"] == pytest.approx(classification_metrics(targets.log_probs("test"), labels)["nll"], rel=1e-3)
    assert scores["mean_weights"] == pytest.approx({"a": 0.5, "b": 0.5})
    assert set(scores["agreement"]) == {"a", "b"}


@pytest.mark.parametrize("codec", ["fp16", {"kind": "sampled", "draws": 5}])
@pytest.mark.parametrize("values", [1, 40, 1 << 30])
def test_a_store_has_the_same_bytes_however_few_rows_are_fused_together(stores, tmp_path, monkeypatch, codec, values):
    small_blocks(monkeypatch, 16)
    options = {"strategy": "linear_pool", "correction": "soft", "codec": codec}
    expected = fuse_store(tmp_path / "expected", stores.teachers, **options)
    monkeypatch.setattr("pipeline.fusion.target.FUSED_TOGETHER", values)
    lengths = set()

    def fuse_few(self, outputs, *, temperature, own=Target.fuse):
        lengths.add(len(outputs))
        return own(self, outputs, temperature=temperature)

    monkeypatch.setattr(Target, "fuse", fuse_few)
    found = fuse_store(tmp_path / "found", stores.teachers, **options)
    assert contents(found.folder) == contents(expected.folder)
    assert max(lengths) == {1: 1, 40: 6, 1 << 30: 16}[values]


@pytest.mark.parametrize("rows", [slice(3, 9), torch.tensor([15, 2]), torch.tensor([], dtype=torch.long)])
def test_stored_rows_decode_to_what_the_stores_say(stores, rows):
    plan, block = stores.teachers[0].plan(), stores.teachers[0].block("train", 1, 1)
    stored = joined.stored_rows(stores.teachers, plan, block, calibrate=True, layers=["penultimate"])
    assert (len(stored), stored.num_teachers, stored.num_values) == (16, 2, 3)
    found, places = stored[rows], np.arange(16, 32)[rows]
    for number, store in enumerate(stores.teachers):
        own = store.manifest.details["temperature"]
        assert torch.equal(found.logits[number], store.logits("train", 1)[places] / own)
        assert torch.equal(found.features["penultimate"][number], store.features("train", "penultimate", 1)[places])
    assert found.labels.tolist() == plan.splits["train"].labels[places].tolist()
    assert found.keys.ids.tolist() == plan.splits["train"].ids[places].tolist()


def test_fusing_one_teacher_gives_that_teacher(stores, tmp_path):
    targets = fuse_store(tmp_path / "t", stores.teachers[:1], calibrate=False, calibrate_pool=False)
    own = stores.teachers[0].logits("train", 1).log_softmax(-1)
    torch.testing.assert_close(targets.log_probs("train", 1), own, atol=0.05, rtol=2e-3)
    assert targets.read("train", "disagreement", 1).max() < 1e-6
    assert (targets.read("train", "weights", 1) == 1).all()


def test_a_temperature_that_was_not_fused_is_told(stores):
    with pytest.raises(StillroomError, match=r"found targets at temperatures \[1.0, 4.0\]; expected 2.0; add it to"):
        stores.targets.log_probs("train", temperature=2.0)


def test_blocks_of_different_sizes_line_up(stores, replayer, tmp_path, monkeypatch):
    small_blocks(monkeypatch, 5)
    other = dump_store(tmp_path / "b", replayer, name="b", seed=1)
    small_blocks(monkeypatch, 12)
    targets = fuse_store(tmp_path / "t", [stores.teachers[0], other])
    assert [s.layout.block_rows for s in (stores.teachers[0], other, targets)] == [16, 5, 12]
    for split, view in every_view(targets):
        for name in targets.layout.arrays:
            assert np.array_equal(targets.read(split, name, view), stores.targets.read(split, name, view))


@pytest.mark.parametrize("number", range(11))
def test_a_killed_fusion_goes_on_and_ends_with_the_same_bytes(stores, tmp_path, monkeypatch, number):
    small_blocks(monkeypatch, 16)

    def again(on_block):
        teachers = [open_teacher(store.folder) for store in stores.teachers]  # as a new process would
        writer, begun = target_writer(tmp_path, teachers)
        return fuse.fuse_stores(teachers, begun, writer, on_block=on_block)

    with pytest.raises(Killed):
        again(kill_at(number, lambda _: None))
    assert again(lambda _: None).blocks == len(stores.targets.layout.blocks) - number - 1
    assert contents(tmp_path) == contents(stores.targets.folder)


def test_stores_of_different_plans_are_refused(stores, tmp_path):
    dataset = make_dataset()
    other = dump_store(tmp_path / "b", Replayer(make_plan(dataset, labelled=10, seed=6), dataset), name="b")
    with pytest.raises(
        StaleStoreError, match=rf"{other.folder}: made from another view plan than .*{stores.teachers[0].folder}"
    ):
        fuse_store(tmp_path / "t", [stores.teachers[0], other])
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("classes", [("ring", "bar"), ("bar", "ring", "dot")])
def test_stores_of_different_classes_are_refused(stores, replayer, tmp_path, classes):
    labels = replayer.plan.splits
    assert max(split.labels.max() for split in labels.values()) == 2
    other = dump_store(tmp_path / "b", replayer, name="b", classes=(*classes, "x", "y")[: max(3, len(classes))])
    with pytest.raises(
        StillroomError, match=r"classes \['\w+', '\w+', '\w+'\]...; expected the 3 of 'a' in the same order"
    ):
        fuse_store(tmp_path / "t", [stores.teachers[0], other])


def test_rows_that_differ_are_refused_whatever_the_manifests_say(stores, replayer, tmp_path, monkeypatch):
    monkeypatch.setattr(Replayer, "digests", lambda self, split, view, positions: positions.astype(np.uint64))
    other = dump_store(tmp_path / "b", replayer, name="b")
    with pytest.raises(
        StaleStoreError, match=r"row_digest of \w+ view 0 rows 0-\d+ differ from those of 'a'; expected"
    ):
        fuse_store(tmp_path / "t", [stores.teachers[0], other])


def test_a_corrupt_teacher_store_stops_the_fusion(stores, replayer, tmp_path):
    store = dump_store(tmp_path / "a", replayer)
    chunk = store.folder / store.layout.chunk_path(store.block("train", 1, 0), "logits")
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(StillroomError, match=r"logits of train view 1 rows 0-40: the chunk has \d+ bytes"):
        fuse_store(tmp_path / "t", [open_teacher(store.folder)])
    assert "not finished" in str(verify(tmp_path / "t")[0])


# -- the theorem ------------------------------------------------------------------------------------------------------


def rounding(log_probs, stored_logits, own_temperatures, temperature):
    """Return how far fp16 may move log p_F of each row, `[B]`.

    Twice rounded: the teachers' centred logits, then the centred target. A log-softmax, and so a mixture or pool of
    several, moves by at most twice the largest move of its logits.
    """
    teachers = torch.stack(
        [z.abs().amax(1) * HALF_STEP / own for z, own in zip(stored_logits, own_temperatures, strict=True)]
    ).amax(0)
    return 2 * teachers / temperature + 2 * HALF_STEP * log_probs.abs().amax(1) + 1e-5  # and float32 on the way


@pytest.mark.parametrize("strategy", ["mean", "weighted"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_step_from_the_store_is_the_step_with_the_teachers_in_the_loop(
    stores, replayer, dataset, tmp_path, strategy, temperature
):
    targets = fuse_store(tmp_path / "t", stores.teachers, strategy=strategy)
    own = [store.manifest.details["temperature"] for store in stores.teachers]
    fitted = Target(FUSIONS[strategy]()).fit(joined.fitting_rows(stores.teachers, calibrate=True))
    student = seeded(lambda: build_model("mlp", num_classes=3, in_shape=SHAPE, depth=0), 7)
    torch.nn.init.normal_(student.classifier.weight, std=0.2, generator=torch.Generator().manual_seed(1))
    teachers = [make_teacher(seed) for seed in range(2)]
    loader = TargetLoader(targets, dataset, batch_size=16, seed=4, temperature=temperature)
    views = set()
    for batch in (batch for _ in range(3) for batch in loader):
        views.add(batch.view)
        offline = kl_divergence(student(batch.inputs), batch.target_log_probs, temperature=temperature)
        (offline_gradient,) = torch.autograd.grad(offline.mean(), student.classifier.weight)

        answers = [teacher.predict(batch.inputs).logits.clone() for teacher in teachers]
        logits = torch.stack([z / t for z, t in zip(answers, own, strict=True)])
        online_target = fitted.fuse(Outputs(logits, batch.labels), temperature=temperature).log_probs
        online = kl_divergence(student(batch.inputs), online_target, temperature=temperature)
        (online_gradient,) = torch.autograd.grad(online.mean(), student.classifier.weight)

        centred = [z - z.amax(1, keepdim=True) for z in answers]
        move = rounding(online_target, centred, own, temperature) / min(1.0, fitted.pool_temperature)
        assert ((batch.target_log_probs - online_target).abs() <= move[:, None]).all()
        # p' = p e^d with |d| <= move, so |KL' - KL| <= (e^move - 1) sum p |log p - log q| + e^move move
        apart = (student(batch.inputs) / temperature).log_softmax(-1) - online_target
        bound = move.expm1() * (online_target.exp() * apart.abs()).sum(1) + move.exp() * move
        assert ((offline - online).abs() <= temperature**2 * bound).all()
        # the gradient in the logits is T (q - p), that in the weights of a linear student its product with the inputs
        size = temperature * move.expm1() * batch.inputs.flatten(1).norm(dim=1)
        assert (offline_gradient - online_gradient).norm() <= size.mean()
        assert (offline_gradient - online_gradient).norm() < 0.01 * online_gradient.norm()
        assert online.mean() > 0.1, "a loss near zero would prove nothing"
    assert views == {0, 1, 2}


def test_targets_open_from_their_path_alone(stores):
    assert open_targets(str(stores.targets.folder)).temperatures == (1.0, 4.0)
