"""What is in a tar, from one pass over its headers: nothing is unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")


class DamagedTarError(Exception):
    """A tar that ends in the midst of something, or goes on with what is no header."""


def files_in(file: IO[bytes], size: int) -> Iterator[tarfile.TarInfo]:
    """The files in an uncompressed tar of `size` bytes, in order; `offset_data` says where the bytes of each begin.

    `file` may be read between two of them. Raises `DamagedTarError` behind the last file that is whole.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
            end = 0
            while (member := tar.next()) is not None:
                # A size below nothing would lead back, for ever.
                if member.size < 0 or tar.offset <= end:
                    raise DamagedTarError(f"damaged: {member.name} has a size of {member.size}")
                end = tar.offset
                # It remembers every member that it has met.
                vars(tar)["members"].clear()
                if member.offset_data + member.size > size:
                    raise DamagedTarError(f"cut off in the midst of {member.name}")
                if member.isreg() and not member.issparse():
                    yield member
            # What is no header is an end to tarfile, and so is the end of the file; a tar that was closed has a block of zeros.
            file.seek(tar.offset)
            block = file.read(tarfile.BLOCKSIZE)
    except (OSError, DamagedTarError):
        raise
    # Headers that were made to be odd raise almost anything: RecursionError, MemoryError, ValueError, ...
    except Exception as error:
        reason = " ".join(str(error).split())
        cut = reason in ("unexpected end of data", "truncated header")
        raise DamagedTarError("empty" if not size else "cut off" if cut else f"damaged: {reason}") from None
    if len(block) < tarfile.BLOCKSIZE:
        raise DamagedTarError("cut off: it has no end")
    if any(block):
        raise DamagedTarError(f"damaged at byte {tar.offset:,}")


def compression_of(file: IO[bytes]) -> str | None:
    """What a file is compressed with, by its first bytes; it is put back to its beginning."""
    file.seek(0)
    start = file.read(6)
    file.seek(0)
    return next((kind for magic, kind in _COMPRESSED.items() if start.startswith(magic)), None)
