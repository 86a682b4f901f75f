"""One pass over a tar finds what tarfile does, and says where a damaged one ends."""

import contextlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visus.data.tars import DamagedTarError, compression_of, files_in


def pack(files, kind=tarfile.PAX_FORMAT, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=kind) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def found(packed):
    return {
        member.name: packed[member.offset_data : member.offset_data + member.size]
        for member in files_in(io.BytesIO(packed), len(packed))
    }


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar(kind):
    long = "a/" * 40 + "b" * 90 if kind == tarfile.USTAR_FORMAT else "é" * 300 + "/x"
    files = {"a.txt": b"1", "folder": None, long: b"2" * 1000, "empty": b"", "last": b"x" * 512}
    assert found(pack(files, kind)) == {name: each for name, each in files.items() if each is not None}


def test_links_are_no_files():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(str(kind))
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    assert found(buffer.getvalue()) == {}


@given(st.integers(0, 9000))
def test_a_tar_that_is_cut_off_anywhere_gives_what_is_whole_and_says_so(length):
    files = {f"{place}.txt": bytes([place]) * 700 for place in range(5)}
    packed = pack(files)
    end = 5 * (512 + 1024)
    whole = {}
    try:
        cut = packed[:length]
        for member in files_in(io.BytesIO(cut), len(cut)):
            whole[member.name] = cut[member.offset_data : member.offset_data + member.size]
        assert length >= end + 512
    except DamagedTarError:
        assert length < end + 512
    assert whole == dict(list(files.items())[: (length - 512 - 700) // 1536 + 1 if length >= 1212 else 0])


@pytest.mark.parametrize("position", [512 + 1024, 2 * 1536 + 148, 3 * 1536])
def test_a_damaged_header_ends_it_with_a_word(position):
    packed = bytearray(pack({f"{place}.txt": bytes(700) for place in range(5)}))
    packed[position : position + 8] = b"XXXXXXXX"
    with pytest.raises(DamagedTarError, match="damaged"):
        found(bytes(packed))


def test_headers_made_to_break_something_end_it():
    member = tarfile.TarInfo("a")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (2**96 - 1024).to_bytes(12, "big")
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
    with pytest.raises(DamagedTarError, match="damaged"):
        found(bytes(header) * 4)
    member.type, member.size = tarfile.XHDTYPE, 0
    with pytest.raises(DamagedTarError, match="damaged"):
        found(member.tobuf(tarfile.USTAR_FORMAT) * 3000)


@given(st.binary(min_size=1, max_size=40), st.integers(0, 10**6))
def test_noise_anywhere_is_no_crash(noise, seed):
    packed = bytearray(pack({f"{place}é.txt": bytes([place]) * 300 for place in range(4)}))
    place = seed % 6000
    packed[place : place + len(noise)] = noise
    with contextlib.suppress(DamagedTarError):
        assert all(len(content) <= 10240 for content in found(bytes(packed)).values())


@pytest.mark.parametrize(
    ("mode", "name"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz"), ("w", None)]
)
def test_compression_is_known_by_the_first_bytes(mode, name):
    file = io.BytesIO(pack({"a": b"1"}, mode=mode))
    assert compression_of(file) == name
    assert file.tell() == 0
