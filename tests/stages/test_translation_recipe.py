"""The recipe of sentences, whole, on some made strings: pieces and whole sentences from teachers to students."""

import json
import math
import shutil

import numpy as np
import pytest
import shipped
import torch
from houses import make_houses
from shipped import of, rows_of, run_shipped
from toys import make_dataset

from pipeline import fuse as fusing
from pipeline.datasets.archives import tar_of
from pipeline.errors import CorruptBlockError, StillroomError
from pipeline.fuse.sentences import proposals
from pipeline.fusion.sentences.strategies import without_references
from pipeline.lineage import require_manifest
from pipeline.loader import Reading, SharedLoader, open_readings
from pipeline.models import zoo
from pipeline.store import open_targets, open_teacher
from pipeline.store.verify import verify
from pipeline.tasks import Tokens
from pipeline.translation.apertium import Apertium
from pipeline.translation.scores import translation_figures
from pipeline.translation.vocabulary import BOS, EOS, PAD
from pipeline.views import UNLABELLED
from stages import distill, fuse, sentences, status
from stages.load import load_recipe
from stages.rows import Rows
from stages.runs import folder_of, runs
from stages.workspace import Workspace
from tests.datasets.test_localisation import mo

WORDS = {
    "open": "abrir", "close": "cerrar", "save": "guardar", "print": "imprimir", "delete": "borrar", "copy": "copiar",
    "the": "la", "file": "hoja", "row": "fila", "cell": "celda", "page": "pagina", "table": "tabla", "line": "linea",
    "new": "nueva", "old": "vieja", "last": "ultima", "first": "primera",
}  # fmt: skip
FEW = [
    "data.max_words=4",
    "fusion.sentences.by=chrf",
    "data.labelled=60",
    "data.calibration=0.15",
    "data.test=0.2",
    "logits.hypotheses=2",
    *(f"teacher.{name}.{key}" for name in ("plain", "deep") for key in ("width=16", "layers=1", "heads=2", "lr=1e-2")),
    *(f"student.{name}.{key}" for name in ("by_piece", "by_sentence") for key in ("width=8", "layers=1", "heads=2")),
]


class Dictionary:
    """A rule: word by word, and what it doesn't know stays."""

    is_installed = True

    def translate(self, texts):
        return [" ".join(WORDS.get(word, word) for word in text.split()) for text in texts]


def write_strings(folder) -> None:
    """Lay down a catalogue of messages of which half of the adjectives stand behind."""
    verbs, things, kinds = list(WORDS)[:6], list(WORDS)[7:13], list(WORDS)[13:]
    pairs = []
    for number, (verb, thing, kind) in enumerate((v, t, k) for v in verbs for t in things for k in kinds):
        said = [WORDS[verb], "la", WORDS[thing], WORDS[kind]]
        pairs.append((f"{verb} the {kind} {thing}", " ".join(said if number % 2 else [*said[:2], said[3], said[2]])))
    pairs += [(f"{source}, please say so", f"{said}, por favor") for source, said in pairs[:9]]  # too many words
    (folder / "m.mo").write_bytes(mo(*pairs))
    (folder / "libreoffice-es.tar").write_bytes(tar_of(folder, "*.mo"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("strings")


@pytest.fixture(scope="module")
def ws(home):
    text = (load_recipe.__globals__["SHIPPED"] / "translation.toml").read_text()
    text = text.replace('model = "apertium"', 'model = "dictionary"')
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.WRITERS, "dictionary", Dictionary)
        patch.setitem(zoo.ZOO, "dictionary", Dictionary)
        recipe = home / "translation.toml"
        recipe.write_text(text)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(shipped, "load_recipe", lambda _, overrides: load_recipe(str(recipe), overrides))
            made = run_shipped("translation", home, write_strings, *FEW)
        yield made


def test_every_model_ran_and_has_all_figures(ws):
    rows = rows_of(ws)
    assert [len(of(rows, kind)) for kind in ("teacher", "fusion", "student", "baseline")] == [3, 2, 4, 4]
    for row in of(rows, "student") + of(rows, "baseline"):
        assert 0 <= row["chrf"] <= 1
        assert 0 <= row["bleu"] <= 1
        assert math.isfinite(row["nll"])
        assert row["words_per_second"] > 0
    rule = next(row for row in rows if row["name"] == "apertium")
    assert rule["chrf"] > 0.5
    assert rule["nll"] is None
    pieces, whole = of(rows, "fusion")
    assert "chrf" not in pieces
    assert math.isfinite(pieces["nll"])
    assert whole["chrf"] > 0
    assert set(whole["mean_weights"]) == {"plain", "deep", "apertium"}
    assert set(pieces["mean_weights"]) == {"plain", "deep"}


def test_sentences_of_too_many_words_are_in_no_split(ws):
    used = np.concatenate([split.ids for split in ws.plan.splits.values()])
    words = ws.dataset.frame["english"].str.split().str.len().to_numpy()
    assert len(ws.dataset) == 153
    assert np.array_equal(np.sort(used), np.flatnonzero(words <= 4))
    assert len(used) == 144


def test_status_counts_what_a_teacher_sees_and_a_rule_sees_nothing(ws):
    rows = {each.name: each.rows for each in status.wanted(ws) if each.kind == "teachers"}
    assert rows == {"plain": 2 * 2 * 32, "deep": 2 * 2 * 32, "apertium": 0}


def test_stores_keep_pieces_and_sentences_and_verify_reads_them(ws):
    assert isinstance(ws.task, Tokens)
    store = open_teacher(ws.store_folder("deep"))
    assert store.output.shape == (12, len(ws.task.names))
    assert store.layout.arrays["hypotheses"].tail == (2, 12)
    assert not verify(store.folder)
    rule = open_teacher(ws.store_folder("apertium"))
    assert rule.outputs == {}
    assert not verify(rule.folder)
    with pytest.raises(StillroomError, match="found whole sentences and no logits"):
        rule.logits("test")
    for fusion in ws.recipe.fusion:
        assert not verify(ws.target_folder(fusion))


def test_a_teachers_sentences_are_its_own_and_best_first(ws):
    from stages import teachers

    entry = ws.recipe.find("teacher", "deep")
    store = open_teacher(ws.store_folder("deep"))
    block = store.blocks("test", 0)[0]
    tokens, scores = store.hypotheses_block(block)
    inputs = ws.replayer_of(None).batch("test", 0, block.positions).inputs
    again, said = teachers.load(ws, entry, layers=[]).write(inputs, 2)
    assert torch.equal(again, tokens)
    torch.testing.assert_close(said, scores)
    assert (scores[:, 0] >= scores[:, 1]).all()
    figures = translation_figures(ws.task.texts(tokens[:, 0]), ws.task.texts(ws.task.truth(ws.plan.splits["test"])))
    kept = store.manifest.details["scores"]["test"]
    assert {name: kept[name] for name in figures} == pytest.approx(figures)


def test_hidden_sentences_are_shown_to_nobody(ws):
    train = ws.plan.splits["train"]
    hidden = np.flatnonzero(train.labels == UNLABELLED)
    assert len(hidden) == len(train) - 60
    assert (train.targets[hidden] == -1).all()
    batch = ws.replayer_of(None).batch("train", 0, np.arange(len(train)))
    assert (batch.inputs[hidden, 1] == PAD).all()
    assert (batch.labels[hidden] == -1).all()
    shown = train.labelled
    assert (batch.inputs[shown, 1, 0] == BOS).all()
    assert (batch.inputs[:, 0, 0] > 3).all()  # what is to be translated is there for all


def test_the_chosen_sentence_is_what_the_strategy_says_and_test_rows_show_no_reference(ws):
    entry = ws.recipe.find("fusion", "sentences")
    targets = open_targets(ws.target_folder(entry))
    stores = [open_teacher(ws.store_folder(name)) for name in targets.teachers]
    target = fusing.begun(targets.folder, fuse.target_of(ws, entry), ws.target_config(entry)).target
    weights = target.state["weights"]  # by chrF on calibration rows: the rule is right, and two epochs teach little
    assert weights[targets.teachers.index("apertium")] > 0.9
    for split in ("train", "test"):
        block = stores[0].blocks(split, 0)[0]
        rows = proposals(stores, ws.plan, block)
        assert [each is None for each in rows.references] == (ws.plan.splits[split].labels[: len(rows)] < 0).tolist()
        fused = target.fuse(without_references(rows) if split == "test" else rows)
        assert np.array_equal(targets.read(split, "sentence")[: len(rows)], fused.tokens.numpy())
        np.testing.assert_allclose(targets.read(split, "weights")[: len(rows)], fused.weights, atol=1e-3)


@pytest.mark.parametrize("references", [False, True])
def test_students_of_sentences_are_shown_what_was_chosen(ws, references):
    targets = open_targets(ws.target_folder(ws.recipe.find("fusion", "sentences")))
    reading = Reading(targets, references=references)
    replayer = open_readings([reading], ws.samples(None))
    batch = next(iter(SharedLoader([reading], replayer, batch_size=32)))[0]
    chosen = torch.from_numpy(targets.read("train", "sentence").astype(np.int64))[batch.positions]
    true = torch.from_numpy(ws.plan.splits["train"].targets).long()[batch.positions]
    has_true = (true >= 0).any(1, keepdim=True)
    wanted = torch.where(chosen == PAD, -1, chosen)
    wanted = torch.where(has_true, true, wanted) if references else wanted
    assert torch.equal(batch.labels, wanted)
    assert torch.equal(batch.inputs[:, 1, 1:], wanted[:, :-1].clamp(min=0))
    assert (batch.inputs[:, 1, 0] == BOS).all()
    ends = (batch.labels == EOS).sum(1)
    assert (ends <= 1).all()


def test_a_students_sentences_are_judged_as_it_writes_them(ws):
    for entry in ws.recipe.student:
        job = next(runs(ws, entry))
        manifest = require_manifest(folder_of(ws, job), "student", make_with="stillroom distill")
        from pipeline import report as reports

        tokens = reports.student_answers(folder_of(ws, job), "test_sentences", as_kept=True).long()
        truth = ws.task.truth(ws.plan.splits["test"])
        assert manifest.metrics["test"]["chrf"] == pytest.approx(ws.task.sentence_figures(tokens, truth)["chrf"])
        assert manifest.config["beams"] == 2
        assert manifest.details["teacher_forwards"] == 0


def test_the_page_writes_sentences_out(ws):
    page = (ws.root / "reports" / "translation" / "index.html").read_text()
    assert "<h2>Sentences</h2>" in page
    case = sentences.written(ws, [])[0]
    assert case.text in page
    assert case.reference in page


def test_run_again_it_does_nothing(ws):
    before = json.loads((ws.root / "reports" / "translation" / "results.json").read_text())
    ws.done.clear()
    distill.run(ws)
    assert ws.done == []
    assert json.loads((ws.root / "reports" / "translation" / "results.json").read_text()) == before


def test_a_rotten_sentence_is_told_and_a_piece_beyond_the_vocabulary_is_none(ws, tmp_path):
    store = open_teacher(ws.store_folder("apertium"))
    copy = tmp_path / store.folder.name
    shutil.copytree(store.folder, copy)
    chunk = copy / store.layout.chunk_path(store.block("test", 0, 0), "hypotheses")
    content = bytearray(chunk.read_bytes())
    content[7] ^= 4
    chunk.write_bytes(content)
    with pytest.raises(CorruptBlockError, match=r"hypotheses of test view 0 rows 0-\d+"):
        open_teacher(copy).hypotheses_block(store.block("test", 0, 0))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.by_sentence.loss.alpha=0.3", r"loss.alpha: found 0.3; expected 0, the chosen sentences, or 1"),
        (
            "student.by_sentence.loss.temperature=2",
            r"loss.temperature: found 2.*; expected none, for sentences are labels",
        ),
        ("student.by_piece.ensemble=2", r"student.by_piece.ensemble: found 2; expected none, .* with sentences yet"),
        ("student.by_piece.model=word_cnn", r"by_piece.model: found 'word_cnn', which answers with something else"),
        ("fusion.sentences.strategy=consensuss", r"unknown strategy 'consensuss'"),
        ("fusion.sentences.by=bleu", r"fusion 'consensus': by is 'bleu'; expected 'uniform' or 'chrf'"),
        ("fusion.sentences.taw=1", r"fusion.sentences: unknown key 'taw'; expected a key of 'consensus'.*'tau'"),
        ("teacher.deep.wrong_labels=0.1", r"teacher.deep.wrong_labels: found 0.1; expected none, for it is of classes"),
    ],
)
def test_what_sentences_have_not_got_is_told(override, message):
    with pytest.raises(StillroomError, match=message):
        load_recipe("translation", [override])


def test_words_so_few_that_no_text_is_left_are_told(ws, tmp_path):
    rows = Rows(load_recipe("translation", ["data.max_words=1"]), tmp_path)
    rows.__dict__["dataset"] = ws.dataset
    with pytest.raises(StillroomError, match=r"data.max_words: found 1; expected 4 or more, for no text is shorter"):
        _ = rows.plan


@pytest.mark.parametrize("dataset", [make_dataset(), make_houses()], ids=["pictures", "numbers"])
def test_words_are_counted_of_texts_only(tmp_path, dataset):
    rows = Rows(load_recipe("translation", ["data.max_words=3"]), tmp_path)
    rows.__dict__["dataset"] = dataset
    with pytest.raises(StillroomError, match=r"data.max_words: found 3; expected it only of texts"):
        _ = rows.plan


def test_sentences_need_to_be_written(tmp_path):
    text = (load_recipe.__globals__["SHIPPED"] / "translation.toml").read_text().replace("hypotheses = 4\n", "")
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(StillroomError, match=r"fusion.sentences.strategy: found 'consensus' without logits.hypotheses"):
        load_recipe(str(tmp_path / "t.toml"))


def test_a_rule_is_no_teacher_of_classes(tmp_path, ws):
    text = (load_recipe.__globals__["SHIPPED"] / "smoke.toml").read_text()
    (tmp_path / "smoke.toml").write_text(f'{text}\n[[teacher]]\nname = "rule"\nmodel = "apertium"\n')
    found = Workspace(load_recipe(str(tmp_path / "smoke.toml")), tmp_path, ws.console)
    found.__dict__["task"] = __import__("pipeline.tasks", fromlist=["Classes"]).Classes(("a", "b"))
    from stages import teachers

    with pytest.raises(StillroomError, match=r"teacher.rule.model: found 'apertium', which writes sentences; expected"):
        teachers._rule(found, found.recipe.find("teacher", "rule"), None)


def test_a_rule_that_is_not_installed_is_left_out_and_one_that_needs_nothing_is_not_optional(monkeypatch):
    monkeypatch.setattr(Apertium, "is_installed", False)
    left = load_recipe("translation")
    assert [entry.name for entry in left.teacher] == ["plain", "deep"]
    monkeypatch.setattr(Apertium, "is_installed", True)
    assert [entry.name for entry in load_recipe("translation").teacher] == ["plain", "deep", "apertium"]
    with pytest.raises(StillroomError, match=r"teacher.deep.optional: found true with 'translator'; expected false"):
        load_recipe("translation", ["teacher.deep.optional=true"])
