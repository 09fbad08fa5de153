"""The joint vocabulary: texts come back as they were, and it is the same whoever learned it in whatever order."""

import builtins
import hashlib
import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import StillroomError
from pipeline.translation.vocabulary import BOS, EOS, NO_ANSWER, PAD, SPECIAL, UNKNOWN, Vocabulary, forced

ROOT = Path(__file__).parents[2]
TEXT = "open close file row column the of Añadir fila archivo 12 3.4 (5) «qué» ¿y? C6/5 it's value-1 número"
WORDS = TEXT.split()
LEARN = "import hashlib, json, sys; from pipeline.translation.vocabulary import Vocabulary; "
LEARN += "print(hashlib.sha256(Vocabulary.learn(json.load(sys.stdin), 120).text.encode()).hexdigest())"


def texts(count: int = 400, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 8))) for _ in range(count)]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.learn(texts(), 120)


# -- learning ---------------------------------------------------------------------------------------------------------


def test_it_is_the_same_whatever_the_order_of_texts(vocabulary):
    for seed in range(5):
        shuffled = texts()
        random.Random(seed).shuffle(shuffled)
        assert Vocabulary.learn(iter(shuffled), 120).text == vocabulary.text


def test_it_is_the_same_with_another_number_of_threads_in_another_process(vocabulary):
    environment = {"RAYON_NUM_THREADS": "3", "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    command, given = [sys.executable, "-c", LEARN], json.dumps(texts()[::-1])
    done = subprocess.run(command, input=given, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [hashlib.sha256(vocabulary.text.encode()).hexdigest()]


@pytest.mark.parametrize("parallel", ["true", "false"])
def test_the_environment_does_not_decide(vocabulary, monkeypatch, parallel):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
    assert Vocabulary.learn(texts(), 120).text == vocabulary.text


def test_how_often_a_text_comes_counts(vocabulary):
    assert Vocabulary.learn(texts() + ["zanahoria"] * 1000, 120).names != vocabulary.names


def test_the_first_pieces_are_special_then_characters_then_frequent_words(vocabulary):
    assert vocabulary.names[:4] == SPECIAL == ("<pad>", "<s>", "</s>", "<unk>")
    assert (PAD, BOS, EOS, UNKNOWN) == (0, 1, 2, 3)
    characters = {character for text in texts() for character in text.replace(" ", "▁")}
    assert set(vocabulary.names[4 : 4 + len(characters)]) == characters
    assert {"▁archivo", "▁fila", "▁the"} <= set(vocabulary.names)
    assert len(vocabulary) == len(set(vocabulary.names)) <= 120


def test_no_piece_goes_across_spaces_digits_or_marks(vocabulary):
    for name in vocabulary.names[4:]:
        bare = name.removeprefix("▁")
        assert bare.isalpha() or len(bare) <= 1


def test_no_texts_and_too_few_pieces_are_told():
    with pytest.raises(
        StillroomError, match=r"vocabulary: found 1 different characters in 1 texts, for 50 pieces; exp"
    ):
        Vocabulary.learn([""], 50)
    with pytest.raises(StillroomError, match=r"found 4 different characters in 2 texts, for 7 pieces; .* ask for 8 "):
        Vocabulary.learn(["abc", "c a"], 7)
    assert Vocabulary.learn(["abc", "c a"], 8).names[4:] == ("a", "b", "c", "▁")


def test_the_missing_package_is_told(monkeypatch):
    def refuse(name: str, *rest: object, **options: object) -> object:
        if name == "tokenizers":
            raise ImportError(name)
        return imported(name, *rest, **options)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(StillroomError, match=r"found no package tokenizers; .*pip install 'stillroom\[text\]'"):
        Vocabulary.learn(["a b"], 50)


# -- texts and numbers ------------------------------------------------------------------------------------------------


def test_texts_come_back_as_they_were(vocabulary):
    found = vocabulary.encode(texts(), 80)
    assert found.dtype == torch.int64
    assert vocabulary.decode(found) == texts()
    for odd in ("", " ", "  two  spaces ", " open", "(open)", "12", "¿y?"):
        known = "".join(character for character in odd if character in "".join(texts()))
        assert vocabulary.decode(vocabulary.encode([odd], 40)) == [known]


def test_a_row_is_pieces_then_the_end_then_padding(vocabulary):
    row = vocabulary.encode(["the file"], 6)[0].tolist()
    assert [vocabulary.names[number] for number in row] == ["▁the", "▁file", "</s>", "<pad>", "<pad>", "<pad>"]
    assert vocabulary.encode([""], 3).tolist() == [[EOS, PAD, PAD]]
    assert vocabulary.encode([], 3).shape == (0, 3)


def test_long_texts_are_cut_with_their_end_kept(vocabulary):
    whole, cut = vocabulary.encode(["the file of the row"], 6)[0], vocabulary.encode(["the file of the row"], 4)[0]
    assert whole.tolist()[-1] == EOS
    assert cut.tolist() == [*whole.tolist()[:3], EOS]
    assert vocabulary.decode(cut[None]) == ["the file of"]
    assert vocabulary.encode(["the file"], 1).tolist() == [[EOS]]
    with pytest.raises(ValueError, match="length = 0; expected 1 or more"):
        vocabulary.encode(["the file"], 0)


def test_characters_that_no_text_has_are_unknown_and_say_nothing(vocabulary):
    row = vocabulary.encode(["the Ж file"], 10)
    assert (row == UNKNOWN).sum() == 1
    assert vocabulary.decode(row) == ["the  file"]


def test_names_of_special_pieces_in_a_text_are_characters(vocabulary):
    learned = Vocabulary.learn(["the </s> of <pad> it"] * 3, 60)
    row = learned.encode(["a <pad> </s>"], 20)
    assert PAD not in row[0, : int((row != PAD).sum())]
    assert learned.decode(learned.encode(["the </s> of <pad> it"], 30)) == ["the </s> of <pad> it"]


def test_decoding_stops_at_the_end_and_says_nothing_of_special_pieces(vocabulary):
    the, file = vocabulary.encode(["the file"], 2)[0, :1], vocabulary.encode(["file"], 2)[0, :1]
    the, file = int(the), int(file)
    rows = torch.tensor([[BOS, the, file, EOS, the], [the, PAD, file, UNKNOWN, PAD], [EOS, the, the, the, the]])
    assert vocabulary.decode(rows) == ["the file", "the file", ""]
    assert vocabulary.decode(torch.zeros(2, 3, dtype=torch.int64)) == ["", ""]


def test_it_is_its_text_also_after_a_journey(vocabulary):
    vocabulary.encode(["the file"], 4)
    other = pickle.loads(pickle.dumps(vocabulary))
    assert other == vocabulary == Vocabulary(vocabulary.text)
    assert hash(other) == hash(vocabulary)
    assert torch.equal(other.encode(texts(), 20), vocabulary.encode(texts(), 20))


# -- what a model is shown --------------------------------------------------------------------------------------------


def test_forced_tokens_are_shifted_right():
    rows = torch.tensor([[5, 6, EOS, -1, -1], [5, 6, 7, 8, EOS], [EOS, PAD, PAD, PAD, PAD], [-1] * 5, [PAD] * 5])
    assert forced(rows).tolist() == [
        [BOS, 5, 6, EOS, PAD],
        [BOS, 5, 6, 7, 8],
        [BOS, EOS, PAD, PAD, PAD],
        [PAD] * 5,
        [PAD] * 5,
    ]
    assert NO_ANSWER == -1
    assert torch.equal(forced(rows.view(5, 1, 5))[:, 0], forced(rows))
    assert forced(rows[:, :1]).tolist() == [[BOS], [BOS], [BOS], [PAD], [PAD]]
