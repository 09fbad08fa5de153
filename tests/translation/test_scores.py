"""Figures of a corpus: fractions of what sacrebleu says, and an error that names what to install."""

import builtins

import pytest
import sacrebleu

from pipeline.errors import StillroomError
from pipeline.translation.scores import translation_figures

WANTED = ["Elimina la fila seleccionada de la tabla.", "Añadir una columna", "Abrir archivo"]
FOUND = ["Elimina la columna seleccionada de la tabla.", "Añadir columna", "Abrir archivo"]


def test_figures_are_fractions_of_sacrebleu_s():
    assert translation_figures(FOUND, WANTED) == {
        "bleu": pytest.approx(sacrebleu.corpus_bleu(FOUND, [WANTED]).score / 100),
        "chrf": pytest.approx(sacrebleu.corpus_chrf(FOUND, [WANTED]).score / 100),
    }
    assert translation_figures(WANTED, WANTED) == {"bleu": pytest.approx(1), "chrf": pytest.approx(1)}
    assert translation_figures(["", "", ""], WANTED) == {"bleu": 0, "chrf": 0}


def test_the_order_of_the_corpus_does_not_matter():
    assert translation_figures(FOUND[::-1], WANTED[::-1]) == pytest.approx(translation_figures(FOUND, WANTED))


@pytest.mark.parametrize(("hypotheses", "references"), [([], []), (["a"], ["a", "b"])])
def test_unequal_and_empty_corpora_are_refused(hypotheses, references):
    with pytest.raises(ValueError, match="expected as many, at least one"):
        translation_figures(hypotheses, references)


def test_the_missing_package_is_told(monkeypatch):
    imported = builtins.__import__

    def refuse(name: str, *rest: object, **options: object) -> object:
        if name == "sacrebleu":
            raise ImportError(name)
        return imported(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(StillroomError, match=r"found no package sacrebleu; .*pip install 'stillroom\[translation\]'"):
        translation_figures(FOUND, WANTED)
