"""The search for translations: exhaustive when it is wide enough, a slow search of lists when it is not."""

import itertools

import pytest
import torch
from torch import Tensor

from pipeline.models.translator import Translator, translator
from pipeline.translation.search import translate, translate_in_batches
from pipeline.translation.vocabulary import BOS, EOS, PAD, UNKNOWN, forced

PIECES, LENGTH = 8, 4
Found = list[tuple[list[int], float]]


def small_model(seed: int = 0, scale: float = 0.4, length: int = LENGTH) -> Translator:
    torch.manual_seed(seed)
    model = translator(num_classes=PIECES, in_shape=(2, length), width=8, layers=2, heads=2).eval()
    with torch.no_grad():  # far from the first weights, which find all pieces nearly as likely
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model


def sources(*lengths: int, width: int = LENGTH) -> Tensor:
    ids = torch.randint(4, PIECES, (len(lengths), width), generator=torch.Generator().manual_seed(1))
    return ids * (torch.arange(width) < torch.tensor(lengths)[:, None])


def every_translation(length: int = LENGTH) -> Tensor:
    """All rows that a translation can be: any pieces, the end, padding; [N, length]."""
    pieces = range(UNKNOWN + 1, PIECES)
    rows = [[*row, EOS] for size in range(length) for row in itertools.product(pieces, repeat=size)]
    return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])


@torch.no_grad()
def exact_scores(model: Translator, source: Tensor, rows: Tensor, alpha: float) -> Tensor:
    """The scores of whole translations by one pass with all pieces shown, float32 [N]."""
    shown = torch.stack([source.expand(len(rows), -1), forced(rows)], dim=1)
    each = model(shown).log_softmax(-1).gather(-1, rows[..., None]).squeeze(-1)
    sizes = (rows != PAD).sum(1)
    return (each * (rows != PAD)).sum(1) / ((5 + sizes) / 6) ** alpha


@torch.no_grad()
def slow_search(model: Translator, source: Tensor, *, beams: int, length: int, alpha: float) -> Found:
    """Beam search of lists, with a pass through the whole model for each beginning."""
    kept: Found = [([], 0.0)]
    for place in range(length):
        grown: Found = []
        for row, total in kept:
            if row[-1:] == [EOS]:
                grown.append((row, total))
                continue
            shown = torch.tensor([BOS, *row, *[PAD] * (length - place - 1)])
            log_probs = model(torch.stack([source, shown])[None])[0, place].log_softmax(-1)
            allowed = [EOS] if place == length - 1 else [EOS, *range(UNKNOWN + 1, PIECES)]
            grown += [([*row, piece], total + float(log_probs[piece])) for piece in allowed]
        kept = sorted(grown, key=lambda each: -each[1] / ((5 + len(each[0])) / 6) ** alpha)[:beams]
    return [(row, total / ((5 + len(row)) / 6) ** alpha) for row, total in kept]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_search_finds_every_translation_best_first(seed, alpha):
    model, rows = small_model(seed), sources(4, 2, 0)
    every = every_translation()
    tokens, scores = translate(model, rows, beams=len(every) + 5, length=LENGTH, alpha=alpha)
    for source, found, score in zip(rows, tokens, scores, strict=True):
        exact = exact_scores(model, source, every, alpha)
        torch.testing.assert_close(score[: len(every)], exact.sort(descending=True).values, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(exact_scores(model, source, found[: len(every)], alpha), score[: len(every)])
        assert {tuple(row) for row in found[: len(every)].tolist()} == {tuple(row) for row in every.tolist()}
        assert (score[len(every) :] == -torch.inf).all(), "there are no more translations"
        assert (found[len(every) :] == PAD).all()


@pytest.mark.parametrize("alpha", [0.0, 0.6])
@pytest.mark.parametrize("beams", [1, 2, 3, 5])
def test_a_narrow_search_finds_what_one_of_lists_does(beams, alpha):
    model, rows = small_model(3, length=6), sources(4, 6, 1, 2, width=6)
    tokens, scores = translate(model, rows, beams=beams, length=6, alpha=alpha)
    assert (tokens.shape, scores.shape, scores.dtype) == ((4, beams, 6), (4, beams), torch.float32)
    for source, found, score in zip(rows, tokens, scores, strict=True):
        wanted = slow_search(model, source, beams=beams, length=6, alpha=alpha)
        assert found.tolist() == [row + [PAD] * (6 - len(row)) for row, _ in wanted]
        torch.testing.assert_close(score, torch.tensor([each for _, each in wanted]), rtol=1e-5, atol=1e-5)


def test_one_beam_is_the_greedy_choice():
    model, rows = small_model(5), sources(4, 3, 1)
    tokens, _ = translate(model, rows, beams=1, length=LENGTH)
    for source, found in zip(rows, tokens[:, 0], strict=True):
        shown = torch.tensor([BOS, PAD, PAD, PAD])
        for place in range(LENGTH):
            logits = model(torch.stack([source, shown])[None])[0, place]
            logits[[PAD, BOS, UNKNOWN]] = -torch.inf
            piece = EOS if place == LENGTH - 1 else int(logits.argmax())
            assert piece == found[place]
            if piece == EOS:
                break
            shown[place + 1 : place + 2] = piece
        assert (found[place + 1 :] == PAD).all()


def test_translations_are_different_sorted_and_end_once():
    tokens, scores = translate(small_model(1), sources(4, 2, 3, 1), beams=6, length=LENGTH)
    assert (scores.diff(dim=1) <= 0).all()
    for found in tokens.tolist():
        assert len({tuple(row) for row in found}) == 6
        for row in found:
            assert row.count(EOS) == 1
            assert not set(row[: row.index(EOS)]) & {PAD, BOS, UNKNOWN}
            assert set(row[row.index(EOS) + 1 :]) <= {PAD}


def test_a_row_is_translated_alike_whoever_is_beside_it_and_every_time():
    model, rows = small_model(2), sources(4, 1, 3, 0, 2)
    tokens, scores = translate(model, rows, beams=3, length=LENGTH)
    for again in (translate(model, rows, beams=3, length=LENGTH), alone(model, rows), batches(model, rows)):
        assert torch.equal(again[0], tokens)
        torch.testing.assert_close(again[1], scores)
    assert torch.equal(translate(model, rows, beams=3, length=LENGTH)[1], scores)


def alone(model: Translator, rows: Tensor) -> tuple[Tensor, Tensor]:
    found = [translate(model, row[None], beams=3, length=LENGTH) for row in rows]
    return torch.cat([tokens for tokens, _ in found]), torch.cat([scores for _, scores in found])


def batches(model: Translator, rows: Tensor) -> tuple[Tensor, Tensor]:
    return translate_in_batches(model, rows, beams=3, length=LENGTH, rows=2)


def test_a_longer_translation_costs_less_the_larger_alpha():
    model, rows = small_model(4), sources(4, 2, 3)
    sizes = [
        (translate(model, rows, beams=90, length=LENGTH, alpha=alpha)[0][:, 0] != PAD).sum()
        for alpha in (0.0, 2.0, 9.0)
    ]
    assert sizes[0] <= sizes[1] <= sizes[2]
    assert sizes[0] < sizes[2]


def test_it_stops_once_all_have_ended():
    class Ends(Translator):
        """Ends at once, whatever the source, and tells how often it was asked."""

        asked = 0

        def step(self, decoding, tokens):
            logits, decoding = super().step(decoding, tokens)
            Ends.asked += 1
            logits[..., EOS] += 100
            return logits, decoding

    model = small_model()
    model.__class__ = Ends
    tokens, scores = translate(model, sources(4, 2), beams=1, length=LENGTH)
    assert tokens.tolist() == [[[EOS, PAD, PAD, PAD]]] * 2
    assert scores.abs().max() < 1e-3
    assert Ends.asked == 1


def test_no_sources_no_translations():
    tokens, scores = translate_in_batches(small_model(), sources(), beams=2, length=LENGTH)
    assert (tokens.shape, scores.shape) == ((0, 2, LENGTH), (0, 2))
    tokens, scores = translate(small_model(), sources(), beams=2, length=LENGTH)
    assert (tokens.shape, scores.shape) == ((0, 2, LENGTH), (0, 2))


def test_the_shortest_translation_is_the_end_alone():
    tokens, scores = translate(small_model(), sources(4), beams=2, length=1)
    assert tokens.tolist() == [[[EOS], [PAD]]]
    assert scores[0, 0].isfinite()
    assert scores[0, 1] == -torch.inf


@pytest.mark.parametrize("options", [{"beams": 0, "length": 4}, {"beams": 1, "length": 0}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError, match=r"beams = .*, length = .*; expected 1 or more"):
        translate(small_model(), sources(4), **options)
