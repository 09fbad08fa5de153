"""Files out of packages: a member of a tar archive, the plain content of a gzipped file, a whole folder as one file."""

import gzip
import io
import tarfile
from pathlib import Path

from pipeline.errors import StillroomError


def member(package: Path, path: str) -> bytes:
    """Return the bytes of a file in a tar archive. Raises StillroomError if there is none of that path."""
    with tarfile.open(package) as archive:
        try:
            stream = archive.extractfile(path)
        except KeyError:
            stream = None
        if stream is None:
            raise StillroomError(f"{package.name} holds no file {path}")
        return stream.read()


def unzipped(path: str, content: bytes) -> bytes:
    """Return the plain content of a file that may be gzipped."""
    return gzip.decompress(content) if path.endswith(".gz") else content


def content_of(folder: Path, path: str) -> bytes:
    """Return the plain content of a file below folder; of a path with a `*`, a tar archive of what it matches."""
    return tar_of(folder, path) if "*" in path else unzipped(path, (folder / path).read_bytes())


def tar_of(folder: Path, pattern: str) -> bytes:
    """Return an archive of the files below folder that a pattern such as `sounds/**/*.wav` matches.

    Names alone and content are kept, in the order of names, relative to what precedes the first `*`: the same files
    are the same bytes wherever they lie and whoever unpacked them. Links are left out, for they may lead anywhere.
    Raises StillroomError when nothing matches.
    """
    fixed = pattern.split("*")[0].rpartition("/")[0]
    root = folder / fixed
    files = {path.relative_to(root).as_posix(): path for path in root.glob(pattern.removeprefix(fixed).lstrip("/"))}
    plain = {name: path for name, path in files.items() if path.is_file() and not path.is_symlink()}
    if not plain:
        raise StillroomError(f"no file matches {pattern}")
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(plain):
            content = plain[name].read_bytes()
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return written.getvalue()
