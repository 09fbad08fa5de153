"""Recordings: archives that are the same whoever unpacked them, pictures of clips, prompts that stay together."""

import hashlib
import io
import os
import pickle
import subprocess
import tarfile
import wave
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets import catalog as catalogue
from pipeline.datasets import open_dataset
from pipeline.datasets import opening as opening_module
from pipeline.datasets import recordings as recordings_module
from pipeline.datasets.archives import tar_of
from pipeline.datasets.catalog import DataFile, Entry, Package, Source, fetch, find_entry, read_catalog
from pipeline.datasets.mel import BANDS, FRAMES, mel_picture
from pipeline.datasets.recordings import RECORDINGS, SAME, is_test, label_of, open_recordings, prompt_of
from pipeline.errors import StillroomError
from pipeline.views import make_splits

RAW = Path(__file__).parents[2] / "data" / "raw"
VOICES = ("en_a", "en_b", "it_c")
PROMPTS = [f"word{i}" for i in range(30)]


def wav(samples: np.ndarray, rate: int = 8000, channels: int = 1) -> bytes:
    written = io.BytesIO()
    with wave.open(written, "wb") as clip:
        clip.setnchannels(channels)
        clip.setsampwidth(2)
        clip.setframerate(rate)
        clip.writeframes(samples.astype("<i2").tobytes())
    return written.getvalue()


def samples_of(voice: int, prompt: int) -> np.ndarray:
    return np.random.default_rng([voice, prompt]).normal(0, 500, 1500 + 100 * prompt).astype(np.int16)


def sounds(root: Path) -> Path:
    """Three voices that say the same thirty prompts, and what is no speech."""
    for voice, name in enumerate(VOICES):
        for prompt, word in enumerate(PROMPTS):
            path = root / "sounds" / name / ("digits" if prompt % 2 else "") / f"{word}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wav(samples_of(voice, prompt)))
        (root / "sounds" / name / "silence").mkdir()
        (root / "sounds" / name / "silence" / "1.wav").write_bytes(wav(np.ones(8000)))
        (root / "sounds" / name / "beep.wav").write_bytes(wav(samples_of(9, 9)))
        (root / "sounds" / name / "empty.wav").write_bytes(wav(np.zeros(0)))
        (root / "sounds" / name / "notes.txt").write_text("none")
    return root


def toy_entry(root: Path, *, classes: tuple[str, ...] = VOICES, **about: object) -> Entry:
    archives = {f"{name}.tar": tar_of(root, f"sounds/{name}/**/*.wav") for name in VOICES}
    files = tuple(
        DataFile(name=name, split="all", holds="recordings", num_bytes=len(each), sha256=sha256(each))
        for name, each in archives.items()
    )
    paths = {f"{name}.tar": f"sounds/{name}/**/*.wav" for name in VOICES}
    place = Source(kind="installed", package="sounds", root=str(root), paths=paths)
    return Entry(
        title="",
        licence="",
        home="",
        format=RECORDINGS,
        classes=classes,
        shape=(1, BANDS, FRAMES),
        samples={"train": 0, "test": 0},
        files=files,
        sources=(place,),
        **about,
    )


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return sounds(tmp_path_factory.mktemp("machine"))


# -- archives ---------------------------------------------------------------------------------------------------------


def test_archive_holds_what_the_pattern_matches_by_name(root):
    with tarfile.open(fileobj=io.BytesIO(tar_of(root, "sounds/en_a/**/*.wav"))) as archive:
        names = archive.getnames()
        content = archive.extractfile("digits/word1.wav").read()
    assert names == sorted(names)
    assert set(names) == {
        path.relative_to(root / "sounds/en_a").as_posix() for path in root.glob("sounds/en_a/**/*.wav")
    }
    assert content == wav(samples_of(0, 1))


def test_archive_is_the_same_whenever_and_by_whomever_files_were_written(tmp_path):
    for name, order in (("one", "ab"), ("two", "ba")):
        for letter in order:
            path = tmp_path / name / "x" / f"{letter}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(letter.encode())
            os.utime(path, (ord(letter), 7 * ord(name[0])))
            path.chmod(0o600 if name == "one" else 0o644)
    (tmp_path / "two" / "x" / "c.wav").symlink_to("/etc/passwd")
    first, second = (tar_of(tmp_path / name, "x/*.wav") for name in ("one", "two"))
    assert first == second
    # The golden is what fetched files are checked by: another writer of archives must not differ.
    assert sha256(first) == "838320b11f8b5f1a64316a208b0bad0767b624b1c923c0dbff333e6e52795e52"


def test_pattern_that_matches_nothing_is_told(tmp_path):
    with pytest.raises(StillroomError, match=r"no file matches usr/\*\*/\*\.wav"):
        tar_of(tmp_path, "usr/**/*.wav")


# -- sources ----------------------------------------------------------------------------------------------------------


def debian_packages(root: Path, folder: Path) -> list[Package]:
    """Build a package of each voice, and return what a catalogue says of it."""
    folder.mkdir()
    packages = []
    for name in VOICES:
        tree = folder / name
        (tree / "DEBIAN").mkdir(parents=True)
        package = name.replace("_", "-")
        control = f"Package: {package}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@x>\nDescription: sounds\n"
        (tree / "DEBIAN" / "control").write_text(control)
        (tree / "sounds").mkdir()
        (tree / "sounds" / name).symlink_to(root / "sounds" / name)
        packed = folder / f"{package}_1_all.deb"
        subprocess.run(["cp", "-rL", str(root / "sounds" / name), str(tree / "copy")], check=True)
        (tree / "sounds" / name).unlink()
        (tree / "copy").rename(tree / "sounds" / name)
        subprocess.run(["dpkg-deb", "-Znone", "--build", str(tree), str(packed)], check=True, capture_output=True)
        packages.append(Package(name=package, version="1", sha256=sha256(packed.read_bytes())))
    return packages


def test_several_debian_packages_give_what_installed_ones_do(root, tmp_path, monkeypatch):
    listed = toy_entry(root)
    packages = debian_packages(root, tmp_path / "mirror")

    def download(names: list[str], work: Path) -> None:
        assert names == [f"{part.name}=1" for part in packages]
        for part in packages:
            (work / f"{part.name}_1_all.deb").write_bytes((tmp_path / "mirror" / f"{part.name}_1_all.deb").read_bytes())

    monkeypatch.setattr(catalogue, "apt_download", download)
    debian = Source(kind="debian", package="sounds", packages=tuple(packages), paths=listed.sources[0].paths)
    folder = fetch("toy", tmp_path / "debian", catalog={"toy": listed.model_copy(update={"sources": (debian,)})})
    there = fetch("toy", tmp_path / "installed", catalog={"toy": listed})
    for file in listed.files:
        assert (folder / file.name).read_bytes() == (there / file.name).read_bytes()
    foreign = packages[1].model_copy(update={"sha256": "0" * 64})
    debian = debian.model_copy(update={"packages": (packages[0], foreign, packages[2])})
    with pytest.raises(StillroomError, match=r"en-b_1_all\.deb has sha256 .*, the catalogue says 000"):
        fetch("toy", tmp_path / "other", catalog={"toy": listed.model_copy(update={"sources": (debian,)})})


def test_entries_of_the_same_files_share_a_folder(root, tmp_path):
    catalog = {"voices": toy_entry(root), "languages": toy_entry(root, classes=("en", "it"), files_of="voices")}
    assert fetch("languages", tmp_path, catalog=catalog) == fetch("voices", tmp_path, catalog=catalog)
    assert [path.name for path in tmp_path.iterdir()] == ["voices"]


def test_shipped_languages_are_of_the_voices_files(tmp_path):
    voices, languages = find_entry("voices"), find_entry("languages")
    assert (languages.files, languages.sources, languages.samples) == (voices.files, voices.sources, voices.samples)
    path = tmp_path / "catalog.toml"
    path.write_text("[x]\nfiles_of = 'nowhere'\ntitle = ''\nlicence = ''\nhome = ''\nformat = ''\nsamples = {}\n")
    with pytest.raises(StillroomError, match=r"(?s)x.*files.*Field required|files\s+Field required"):
        read_catalog(path)


# -- clips ------------------------------------------------------------------------------------------------------------


def opened(root: Path, raw: Path, **options: object):
    return open_recordings("toy", toy_entry(root, **options), raw, None, None)


def test_clips_are_pictures_of_their_voices(root, tmp_path):
    dataset = opened(root, tmp_path)
    assert len(dataset) == len(VOICES) * len(PROMPTS)  # neither beeps, silence nor an empty file
    expected = {
        mel_picture(samples_of(voice, prompt)).tobytes(): (voice, is_test(PROMPTS[prompt]))
        for voice in range(len(VOICES))
        for prompt in range(len(PROMPTS))
    }
    tested = np.isin(np.arange(len(dataset)), dataset.official_test)
    for i in range(len(dataset)):
        assert expected[dataset.read(np.array([i])).numpy().tobytes()] == (dataset.labels[i], tested[i])
    languages = opened(root, tmp_path, classes=("en", "it"))
    assert np.array_equal(languages.labels, (dataset.labels == 2).astype(int))
    assert pickle.loads(pickle.dumps(dataset)).fingerprint == dataset.fingerprint != languages.fingerprint


def test_pictures_are_read_at_other_sizes(root, tmp_path):
    dataset = open_recordings("toy", toy_entry(root), tmp_path, 16, 3).hold_in_memory(1 << 30)
    assert dataset.read(np.arange(2)).shape == (2, 3, 16, 16)


def test_digests_are_of_the_files_and_the_fingerprint_knows_how_pictures_are_made(root, tmp_path, monkeypatch):
    dataset = opened(root, tmp_path)
    contents = [wav(samples_of(v, p)) for v in range(len(VOICES)) for p in range(len(PROMPTS))]
    wanted = {int.from_bytes(hashlib.blake2b(each, digest_size=8).digest(), "little") for each in contents}
    assert set(dataset.source_digests(np.arange(len(dataset))).tolist()) == wanted
    before = dataset.fingerprint
    monkeypatch.setattr(recordings_module, "MEL_VERSION", 2)
    assert opened(root, tmp_path).fingerprint != before


def test_pictures_are_kept_and_made_again_when_what_was_kept_is_damaged(root, tmp_path, monkeypatch):
    first = opened(root, tmp_path)
    (kept,) = (tmp_path / "toy").glob("mel-*.npz")
    with monkeypatch.context() as patch:
        patch.setattr(recordings_module, "read_clips", None)  # nothing is made anew
        assert np.array_equal(opened(root, tmp_path).pixels, first.pixels)
    content = kept.read_bytes()
    place = content.index(first.pixels[0].numpy().tobytes()[2000:2100])
    for damaged in (content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :], content[:5000], b"", b"PK"):
        kept.write_bytes(damaged)
        assert np.array_equal(opened(root, tmp_path).pixels, first.pixels)
        assert kept.read_bytes() == content


def test_other_sounds_are_refused(tmp_path):
    for content, told in (
        (wav(np.ones(100), rate=16_000), r"found 16000 Hz, 1 channels, 16 bits; expected 8000 Hz"),
        (wav(np.ones(100), channels=2), r"found 8000 Hz, 2 channels"),
        (b"no sound", r"x: found no sound \(.*\); expected a wav file"),
    ):
        with pytest.raises(StillroomError, match=told):
            recordings_module.samples_of(content, "x")


# -- prompts ----------------------------------------------------------------------------------------------------------


def test_prompt_is_the_name_of_a_file_whatever_its_folder():
    assert prompt_of("digits/7.wav") == prompt_of("7.wav") == "7"
    assert prompt_of("silence/7.wav") == prompt_of("beep.wav") == ""
    assert prompt_of("vm-and.wav") == prompt_of("digits/et.wav") == prompt_of("digits/e.wav")
    names = [name for names in SAME for name in names]
    assert len(set(names)) == len(names)


def test_class_is_the_one_that_the_files_name_starts_with():
    assert [label_of(f"{name}.tar", VOICES) for name in VOICES] == [0, 1, 2]
    assert [label_of(f"{name}.tar", ("en", "it")) for name in VOICES] == [0, 0, 1]


def test_test_prompts_are_a_fifth_of_all():
    assert np.mean([is_test(f"prompt {i}") for i in range(5000)]) == pytest.approx(0.2, abs=0.02)


def prompts_by_split(dataset, **options: object) -> dict[str, set]:
    shares = {"calibration": 0.15, "test": 0.2, "labelled": None, "seed": 3, **options}
    splits = make_splits(dataset.labels, dataset.official_test, units=dataset.units, **shares)
    return {name: set(dataset.units[split.ids].tolist()) for name, split in splits.items()}


def test_no_prompt_is_in_two_splits(root, tmp_path):
    dataset = opened(root, tmp_path)
    found = prompts_by_split(dataset)
    assert sum(len(units) for units in found.values()) == len(set.union(*found.values())) == len(PROMPTS)
    assert all(np.bincount(dataset.units) == len(VOICES))


def test_it_is_opened_by_name(root, tmp_path, monkeypatch):
    monkeypatch.setattr(opening_module, "data_sets", lambda: {"toy": toy_entry(root)})
    assert len(open_dataset("toy", tmp_path)) == len(VOICES) * len(PROMPTS)


# -- the real ones ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["voices", "languages"])
def test_real_recordings_are_whole_and_no_prompt_is_heard_before_its_test(name):
    dataset, listed = open_dataset(name, RAW), find_entry(name)
    assert (len(dataset), dataset.shape) == (sum(listed.samples.values()), (1, BANDS, FRAMES))
    assert len(dataset.official_test) == listed.samples["test"]
    assert len(np.unique(dataset.source_digests(np.arange(len(dataset))))) == len(dataset)
    assert (
        np.bincount(dataset.labels).tolist()
        == {
            "voices": [552, 511, 545, 539, 583, 559],
            "languages": [552, 511, 545, 1122, 559],
        }[name]
    )
    found = prompts_by_split(dataset)
    assert sum(len(units) for units in found.values()) == len(set.union(*found.values())) == 596
    assert (dataset.pixels.flatten(1).amax(1) == 255).all()
    train, test = np.setdiff1d(np.arange(len(dataset)), dataset.official_test), dataset.official_test
    rows = dataset.pixels.flatten(1).float()
    rows = rows - rows.mean(1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True)
    assert (rows[test] @ rows[train].T).max() < 0.98  # no recording under another name
