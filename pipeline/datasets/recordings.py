"""Recorded voice prompts: who, or in which language, says a prompt that was heard from nobody before.

Each clip is a log-mel picture. All clips of a prompt stay in one split: a model that knows how "vm-goodbye" sounds
would otherwise be asked what it has learned by heart. Trade: one voice is one studio, so part of what tells voices
apart is how they were recorded.
"""

import hashlib
import io
import json
import tarfile
import wave
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.datasets.catalog import Entry, fetch
from pipeline.datasets.digests import as_uint64, digest
from pipeline.datasets.images import ImageDataset, from_arrays
from pipeline.datasets.mel import MEL_VERSION, RATE, mel_picture
from pipeline.errors import StillroomError
from pipeline.lineage import write_durably

RECORDINGS = "recordings"  # the format of these entries
CLIPS_VERSION = 1  # raise it when other clips are left out, or prompts are told apart in another way
TEST_SHARE = 0.2  # of the prompts
TONES = ("ascending-2tone", "beep", "beeperr", "confbridge-join", "confbridge-leave", "descending-2tone")  # of no voice
# Prompts of which some voice has one recording, or two that share words: clips or pictures that correlate above 0.97.
# Pictures of single letters of one voice do, too (b and d), but they are two recordings.
SAME = (
    ("9", "9_p"),
    ("and", "e", "et", "vm-and"),
    ("auth-thankyou", "privacy-thankyou", "queue-thankyou"),
    ("conf-adminmenu", "conf-usermenu"),
    ("conf-locked", "conf-lockednow"),
    ("confbridge-rest-list-vol-in", "confbridge-rest-list-vol-out"),
    ("demo-instruct", "demo-thanks"),
    ("dir-intro", "dir-intro-fn", "dir-usingkeypad", "dir-welcome"),
    ("invalid", "pbx-invalid"),
    ("minutes", "queue-minutes", "vm-minutes"),
    ("playback_mode", "record_help"),
    ("please-try-again", "vm-pls-try-again"),
    ("queue-seconds", "second-time", "seconds"),
    ("spy-iax", "spy-iax2"),
    ("vm-INBOX", "vm-nuovi"),
    ("vm-Old", "vm-vecchi"),
    ("vm-incorrect", "vm-incorrect-mailbox"),
    ("vm-message", "vm-messages"),
    ("z", "zed"),
)
PROMPT_OF = {name: names[0] for names in SAME for name in names}


class Clips(NamedTuple):
    """Clips in the order of files and names.

    pictures: uint8 [N, 1, BANDS, FRAMES]; voices: int64 [N], places among the entry's files; prompts: str [N];
    digests: uint64 [N], of each clip's file.
    """

    pictures: np.ndarray
    voices: np.ndarray
    prompts: np.ndarray
    digests: np.ndarray


def open_recordings(name: str, entry: Entry, raw: Path, size: int | None, channels: int | None) -> ImageDataset:
    """Return the clips of a catalogue entry as pictures, fetched into raw if need be.

    Each of the entry's files holds the clips of one voice; a clip's class is the one whose name its file's starts
    with. The test prompts are TEST_SHARE of all, chosen by the hash of their names, whoever speaks them.
    """
    clips = clips_of(fetch(name, raw, catalog={name: entry}), entry)
    class_of = np.array([label_of(file.name, entry.classes) for file in entry.files])
    tested = np.array([is_test(prompt) for prompt in clips.prompts])
    clips = Clips(*(values[np.argsort(tested, kind="stable")] for values in clips))
    dataset = from_arrays(name, entry, clips.pictures, class_of[clips.voices], size, channels)
    return replace(
        dataset,
        official_test=np.arange(len(tested) - tested.sum(), len(tested)),
        digest_all=partial(np.asarray, clips.digests),
        units=np.unique(clips.prompts, return_inverse=True)[1],
        made_by={"mel_version": MEL_VERSION, "clips_version": CLIPS_VERSION},
    )


def label_of(file_name: str, classes: tuple[str, ...]) -> int:
    """Return the class whose name a file's starts with: of "en_US_f_Allison.tar" also "en"."""
    return next(label for label, name in enumerate(classes) if file_name.startswith(name))


def is_test(prompt: str) -> bool:
    """Tell whether a prompt is one of the test: its name decides, so that another voice changes nothing."""
    return int.from_bytes(digest(prompt.encode()), "little") < TEST_SHARE * 2**64


def prompt_of(path: str) -> str:
    """Return the prompt of a clip, the name of its file; "" for what holds no speech.

    One name in several folders is one prompt, and so are names of which a voice has one recording.
    """
    folders, _, file = path.rpartition("/")
    name = file.removesuffix(".wav")
    return "" if name in TONES or folders == "silence" else PROMPT_OF.get(name, name)


# -- clips ------------------------------------------------------------------------------------------------------------


def clips_of(folder: Path, entry: Entry) -> Clips:
    """Return the clips of an entry's files, from what an earlier run kept of exactly these where that is whole."""
    made_from = {"files": [file.sha256 for file in entry.files], "mel": MEL_VERSION, "clips": CLIPS_VERSION}
    path = folder / f"mel-{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]}.npz"
    clips = kept_clips(path)
    if clips is None:
        clips = read_clips(folder, entry)
        written = io.BytesIO()
        np.savez(written, **clips._asdict())
        write_durably(path, written.getvalue())
    return clips


def kept_clips(path: Path) -> Clips | None:
    """Return the clips of a file, None unless it is there and whole: it is a zip, which has a CRC of each array."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return Clips(*(kept[field] for field in Clips._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def read_clips(folder: Path, entry: Entry) -> Clips:
    """Return all clips of speech in an entry's files."""
    pictures, voices, prompts, digests = [], [], [], []
    for voice, file in enumerate(entry.files):
        for path, content in members(folder / file.name):
            prompt, samples = prompt_of(path), samples_of(content, f"{folder / file.name}: {path}")
            if not prompt or not samples.any():
                continue
            pictures.append(mel_picture(samples))
            voices.append(voice)
            prompts.append(prompt)
            digests.append(digest(content))
    return Clips(np.stack(pictures), np.array(voices, np.int64), np.array(prompts, np.str_), as_uint64(digests))


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each file in an archive, in its order."""
    with tarfile.open(archive) as opened:
        for found in opened:
            stream = opened.extractfile(found)
            if stream is not None:
                yield found.name, stream.read()


def samples_of(content: bytes, where: str) -> np.ndarray:
    """Return the samples of a wav file: int16 [n]. Raises StillroomError unless it is 8 kHz, mono and of 16 bits."""
    try:
        with wave.open(io.BytesIO(content)) as clip:
            found = clip.getframerate(), clip.getnchannels(), 8 * clip.getsampwidth()
            frames = clip.readframes(clip.getnframes())
    except (wave.Error, EOFError) as error:
        raise StillroomError(f"{where}: found no sound ({error}); expected a wav file; convert or remove it") from error
    if found != (RATE, 1, 16):
        raise StillroomError(
            f"{where}: found {found[0]} Hz, {found[1]} channels, {found[2]} bits; expected {RATE} Hz, 1 channel and "
            "16 bits; convert it"
        )
    return np.frombuffer(frames, "<i2").astype(np.int16)
