"""Audio files, good and bad, written by the tests themselves."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from sounding.data.audio import (
    MIN_SECONDS,
    SUFFIXES,
    AudioError,
    CancellingChannelsWarning,
    IncompleteAudioWarning,
    SilentAudioWarning,
    announced_bytes,
    as_float,
    audio_blocks,
    check_length,
    check_samples,
    duration,
    read_audio,
)
from sounding.data.mpeg import find_frames


def in_blocks(path):
    return np.concatenate(list(audio_blocks(path)))


ALL_READERS = [read_audio, duration]
DECODERS = [read_audio, in_blocks]


def tone(seconds: float, rate: int = 16000, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype("f4")


@pytest.fixture
def write(tmp_path):
    def write(samples, rate=16000, name="clip.wav", **options):
        sf.write(tmp_path / name, samples, rate, **options)
        return tmp_path / name

    return write


def test_wav_comes_back_as_float32_mono_without_a_change(write):
    audio = read_audio(write(tone(0.5), subtype="FLOAT"))
    assert audio.dtype == np.float32
    np.testing.assert_array_equal(audio, tone(0.5))


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("a.wav", "PCM_16"),
        ("a.flac", None),
        ("a.ogg", "VORBIS"),
        ("a.opus", "OPUS"),
        ("a.mp3", None),
    ],
)
def test_every_documented_format_is_read_at_its_length(write, name, subtype):
    options = {"format": "OGG"} if name == "a.opus" else {}
    path = write(tone(1.0), name=name, subtype=subtype, **options)
    audio = read_audio(path)
    assert len(audio) == pytest.approx(16000, abs=2400)  # mp3 pads to whole frames
    assert duration(path) == pytest.approx(len(audio) / 16000)
    assert np.sqrt(np.mean(audio[4000:12000] ** 2)) == pytest.approx(0.354, abs=0.02)


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_other_rates_are_resampled_to_the_same_tone(write, rate):
    audio = read_audio(write(tone(1.0, rate), rate))
    assert len(audio) == pytest.approx(16000, abs=1)
    np.testing.assert_allclose(audio[1000:-1000], tone(1.0)[1000 : len(audio) - 1000], atol=0.01)


def test_eight_channels_are_averaged_not_picked(write):
    channels = np.outer(tone(0.2), np.arange(8) / 8).astype("f4")
    audio = read_audio(write(channels, subtype="FLOAT"))
    np.testing.assert_allclose(audio, tone(0.2) * 3.5 / 8, atol=1e-6)


def test_ten_minutes_are_too_long_and_can_be_cut_while_decoding(write):
    noise = np.random.default_rng(0).normal(0, 1e-3, 600 * 8000)
    path = write(noise, 8000, "long.flac")
    assert duration(path) == 600.0
    audio = read_audio(path, max_seconds=2)
    assert len(audio) == 32000
    with pytest.raises(AudioError, match=r"long\.flac: 600\.0 s, .* 30 s: .*--max-seconds"):
        check_length(600 * 16000, 16000, 30, path)


def test_the_limit_itself_is_allowed():
    check_length(np.zeros(30 * 16000), 16000, 30.0, "x.wav")
    with pytest.raises(AudioError):
        check_length(np.zeros(30 * 16000 + 1), 16000, 30.0, "x.wav")


def test_max_seconds_beyond_the_end_is_the_whole_file(write):
    assert len(read_audio(write(tone(0.5)), max_seconds=100)) == 8000


@pytest.mark.parametrize(
    ("name", "format"), [("a.wav", "WAV"), ("a.flac", "FLAC"), ("a.sph", "NIST")]
)
def test_a_segment_is_that_part_of_the_file_and_no_more(write, name, format):
    path = write(tone(2.0), name=name, format=format, subtype="PCM_16")
    whole = read_audio(path)
    assert len(whole) == 32000
    np.testing.assert_array_equal(read_audio(path, start=0.5, end=1.25), whole[8000:20000])
    np.testing.assert_array_equal(read_audio(path, start=1.5), whole[24000:])
    np.testing.assert_array_equal(read_audio(path, end=0.25), whole[:4000])
    cut = read_audio(path, start=0.5, end=1.5, max_seconds=0.1)
    np.testing.assert_array_equal(cut, whole[8000:9600])


def test_a_segment_may_end_a_little_behind_its_recording_but_not_much(write):
    path = write(tone(2.0))
    assert len(read_audio(path, start=1.0, end=2.4)) == 16000
    with pytest.raises(AudioError, match=r"clip.wav\[1.00-2.60\]: the recording has 2.00 s"):
        read_audio(path, start=1.0, end=2.6)
    with pytest.raises(AudioError, match=r"\[3.00-end\]: the recording has 2.00 s"):
        read_audio(path, start=3.0)
    with pytest.raises(AudioError, match=r"\[1.00-1.01\]: 0.010 s"):
        read_audio(path, start=1.0, end=1.01)


@pytest.mark.parametrize("seconds", [0, 0.01, -1, float("nan")])
def test_max_seconds_that_leaves_nothing_is_refused(write, seconds):
    with pytest.raises(ValueError, match="max_seconds is"):
        read_audio(write(tone(0.5)), max_seconds=seconds)


@pytest.mark.parametrize("read", ALL_READERS)
def test_missing_file(tmp_path, read):
    with pytest.raises(AudioError, match=r"none\.wav: no such file.*check the path"):
        read(tmp_path / "none.wav")


@pytest.mark.parametrize("read", ALL_READERS)
def test_directory(tmp_path, read):
    with pytest.raises(AudioError, match="a directory, expected an audio file"):
        read(tmp_path)


@pytest.mark.parametrize("read", ALL_READERS)
def test_empty_file(tmp_path, read):
    (tmp_path / "a.wav").touch()
    with pytest.raises(AudioError, match=r"a\.wav: an empty file \(0 bytes\)"):
        read(tmp_path / "a.wav")


@pytest.mark.parametrize("read", ALL_READERS)
def test_header_without_samples(write, read):
    with pytest.raises(AudioError, match="no samples"):
        read(write(np.zeros(0)))


@pytest.mark.parametrize("read", ALL_READERS)
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.raw"])
def test_something_else_under_an_audio_name(tmp_path, read, name):
    (tmp_path / name).write_bytes(b"this is not audio" * 100)
    with pytest.raises(AudioError, match=r"cannot be decoded .*, expected .*: copy or convert"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3"])
def test_damage_in_the_middle_is_an_error_not_a_shorter_clip(write, name):
    noise = np.random.default_rng(0).normal(0, 0.1, 48000)
    path = write(noise, name=name)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = b"\xff" * 400
    path.write_bytes(content)
    with pytest.raises(AudioError, match="cannot be decoded"):
        read_audio(path)


@pytest.mark.parametrize("read", ALL_READERS)
def test_a_stream_of_unknown_length(write, read):
    path = write(tone(0.5), name="a.flac")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of the number of samples in STREAMINFO
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(AudioError, match="does not say its length"):
        read(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_found_in_any_channel(write, value):
    samples = np.stack([tone(1.0), tone(1.0)], axis=1)
    samples[8000, 1] = value
    with pytest.raises(AudioError, match=r"1 samples are NaN or infinite .* 0\.500 s"):
        read_audio(write(samples, subtype="FLOAT"))


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_ten_milliseconds_are_too_short(write, rate):
    with pytest.raises(AudioError, match=r"0\.010 s .*, expected at least 0\.06 s"):
        read_audio(write(tone(0.01, rate), rate))


def test_the_shortest_clip_is_read(write):
    assert len(read_audio(write(tone(MIN_SECONDS)))) == 960


def test_silence_is_valid_with_a_warning(write):
    with pytest.warns(SilentAudioWarning, match=r"clip\.wav: the audio is silent"):
        audio = read_audio(write(np.zeros(16000)))
    assert audio.shape == (16000,)
    assert not audio.any()


def test_quiet_audio_is_not_called_silent(write):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_audio(write(tone(0.5) * 1e-4, subtype="FLOAT"))


# --- mp3: all that is there, no more ----------------------------------------------------------


def mp3(path: Path, samples: np.ndarray, rate: int = 16000, header: bool = True) -> Path:
    """An mp3 of variable bit rate, with or without the header of its encoder."""
    sf.write(path, samples, rate, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    if not header:
        with path.open("rb") as file:
            (stream,) = find_frames(file)
        content, (start, length) = path.read_bytes(), stream.info
        path.write_bytes(content[:start] + content[start + length :])
    return path


def uneven(seconds: float, rate: int = 16000) -> np.ndarray:
    """Noise, then as long a silence: frames of many sizes."""
    loud = np.random.default_rng(0).normal(0, 0.2, round(seconds * rate / 2))
    return np.concatenate([loud, np.zeros(len(loud))])


def lasts(path: Path, seconds: float, extra: float = 0.15) -> np.ndarray:
    """The audio of a file, of which every reader has to find so many seconds, or frames more."""
    samples = read_audio(path)
    assert seconds - 0.001 <= len(samples) / 16000 <= seconds + extra
    np.testing.assert_array_equal(in_blocks(path), samples)
    assert duration(path) == pytest.approx(len(samples) / 16000, abs=0.001)
    return samples


@pytest.mark.parametrize("rate", [16000, 44100, 11025])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("channels", [1, 2])
def test_an_mp3_of_variable_bit_rate_is_read_to_its_end(tmp_path, rate, turned, channels):
    samples = uneven(4.0, rate)[:: -1 if turned else 1]
    stacked = np.stack([samples] * channels, axis=1)
    path = mp3(tmp_path / "a.mp3", stacked, rate, header=False)
    with sf.SoundFile(path) as file:
        assert abs(file.frames / rate - 4.0) > 0.2  # what libsndfile expects is wrong
    heard = lasts(path, 4.0, extra=0.25)
    halves = [np.abs(half).mean() for half in (heard[1000:30000], heard[36000:62000])]
    silent, loud = halves if turned else halves[::-1]
    assert loud > 0.05 > 20 * silent


@pytest.mark.parametrize("header", [True, False])
def test_mp3_files_that_were_joined_are_read_one_after_the_other(tmp_path, header):
    one = mp3(tmp_path / "1.mp3", tone(1.0), header=header).read_bytes()
    two = mp3(tmp_path / "2.mp3", tone(1.0, hertz=880), header=header).read_bytes()
    tags = b"TAG" + bytes(125) + b"ID3\4\0\0\0\0\1\0" + bytes(range(128))
    for number, between in enumerate((b"", tags)):
        path = tmp_path / f"both{number}.mp3"
        path.write_bytes(one + between + two)
        heard = lasts(path, 2.0, extra=0.0 if header else 0.25)
        for part, hertz in ((heard[4000:12000], 440), (heard[-12000:-4000], 880)):
            assert np.abs(np.fft.rfft(part)).argmax() == hertz / 2


def test_an_mp3_with_its_header_is_as_long_as_what_was_encoded(tmp_path):
    for rate, count in ((16000, 16000), (44100, 50001), (8000, 12345)):
        path = mp3(tmp_path / "a.mp3", tone(count / rate, rate), rate)
        assert duration(path) == pytest.approx(count / rate, abs=0.0011)
        if rate == 16000:
            np.testing.assert_allclose(read_audio(path)[800:-800], tone(1.0)[800:-800], atol=0.05)


def test_an_mp3_whose_header_counts_itself_keeps_its_start(tmp_path):
    path = mp3(tmp_path / "a.mp3", tone(2.0))
    whole, content = read_audio(path), path.read_bytes()
    place = max(content.find(b"Xing"), content.find(b"Info")) + 8
    count = int.from_bytes(content[place : place + 4], "big")
    path.write_bytes(content[:place] + (count + 1).to_bytes(4, "big") + content[place + 4 :])
    np.testing.assert_array_equal(read_audio(path)[: len(whole)], whole)


def test_much_junk_behind_an_mp3_is_passed_over_fast(tmp_path):
    path = mp3(tmp_path / "a.mp3", tone(1.0), header=False)
    path.write_bytes(path.read_bytes() + b"\xff" * (32 << 20))
    start = time.perf_counter()
    lasts(path, 1.0, extra=0.25)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("name", "front"),
    [
        ("a.mp3", bytes(300)),
        ("a.mp3", b"x" * 700),
        ("a.bin", b"ID3\3\0\0\0\0\2\0" + bytes(256)),
    ],
)
def test_what_stands_in_front_of_an_mp3_is_passed_over(tmp_path, name, front):
    path = mp3(tmp_path / name, uneven(4.0), header=False)
    path.write_bytes(front + path.read_bytes())
    lasts(path, 4.0, extra=0.25)


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize(("rate", "channels"), [(22050, 1), (16000, 2)])
def test_joined_mp3_files_of_several_kinds_are_refused(tmp_path, header, rate, channels):
    one = mp3(tmp_path / "1.mp3", tone(1.0), header=header).read_bytes()
    more = np.stack([tone(1.0, rate)] * channels, axis=1)
    two = mp3(tmp_path / "2.mp3", more, rate, header=header).read_bytes()
    for content in (one + two, two + one, one + two + one):
        (tmp_path / "a.mp3").write_bytes(content)
        with pytest.raises(AudioError, match="joined in it differ in rate or channels"):
            read_audio(tmp_path / "a.mp3")


def test_an_mp3_of_free_format_is_read_to_its_end(tmp_path):
    sf.write(tmp_path / "a.mp3", uneven(2.0), 16000, bitrate_mode="CONSTANT", compression_level=0.6)
    constant = read_audio(tmp_path / "a.mp3")
    content = bytearray((tmp_path / "a.mp3").read_bytes())
    with (tmp_path / "a.mp3").open("rb") as file:
        (stream,) = find_frames(file)
    (start, length), at = stream.runs[0], stream.runs[0][0]
    assert stream.frames * stream.longest == length
    while at < start + length:  # free: the bit rate is not said, and the frames stay as they are
        content[at + 2] &= 0x0F
        at += stream.longest
    (tmp_path / "free.mp3").write_bytes(content[start:])
    heard = lasts(tmp_path / "free.mp3", 2.0, extra=0.25)
    assert np.abs(heard[2000:14000]).mean() == pytest.approx(
        np.abs(constant[2000:14000]).mean(), rel=0.1
    )


@pytest.mark.parametrize("joined", [False, True])
def test_an_mp3_of_which_the_header_announces_more_is_cut(tmp_path, joined):
    content = mp3(tmp_path / "a.mp3", uneven(4.0)).read_bytes()
    whole = content if joined else b""
    (tmp_path / "a.mp3").write_bytes(whole + content[: len(content) // 3])
    for read in (read_audio, in_blocks, duration):
        with pytest.raises(AudioError, match=r"\d s of what the header announces are missing"):
            read(tmp_path / "a.mp3")


def test_an_mp3_without_a_header_announces_nothing(tmp_path):
    content = mp3(tmp_path / "a.mp3", tone(4.0), header=False).read_bytes()
    (tmp_path / "a.mp3").write_bytes(content[: len(content) // 2])
    assert 1.9 < len(lasts(tmp_path / "a.mp3", 1.9, extra=0.3)) / 16000 < 2.2


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("damage", [b"\xff", b"\0", b"x"])
def test_damage_in_an_mp3_is_found_with_and_without_a_header(tmp_path, header, damage):
    path = mp3(tmp_path / "a.mp3", np.random.default_rng(0).normal(0, 0.1, 64000), header=header)
    content, middle = path.read_bytes(), path.stat().st_size // 2
    path.write_bytes(content[:middle] + damage * 3000 + content[middle + 3000 :])
    for read in DECODERS:
        with pytest.raises(AudioError, match=r"cannot be decoded .* are missing"):
            read(path)


def test_a_segment_of_an_mp3_is_that_part_of_the_whole(tmp_path):
    path = mp3(tmp_path / "a.mp3", uneven(6.0)[::-1], header=False)
    whole = read_audio(path)
    np.testing.assert_array_equal(read_audio(path, start=3.5, end=4.75), whole[56000:76000])
    np.testing.assert_array_equal(read_audio(path, start=5.0, max_seconds=0.5), whole[80000:88000])


# --- other formats of libsndfile --------------------------------------------------------------

NOT_WRITTEN = ("DWVW_12", "MPEG_LAYER_I", "MPEG_LAYER_II")
WRITTEN = [
    (form, subtype)
    for form in sf.available_formats()
    for subtype in sf.available_subtypes(form)
    if form not in ("RAW", "SD2", "WVE", "XI") and subtype not in NOT_WRITTEN  # or of fixed rates
    if (form, subtype) not in (("WAV", "MPEG_LAYER_III"), ("VOC", "PCM_U8"))
]


@pytest.mark.parametrize(("form", "subtype"), WRITTEN)
def test_every_format_that_libsndfile_writes_is_read_whole_in_blocks_and_in_segments(
    tmp_path, form, subtype
):
    path = tmp_path / "a.audio"
    sf.write(path, tone(2.0), 16000, format=form, subtype=subtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heard = lasts(path, 2.0, extra=0.04)  # some have whole blocks only
    assert np.abs(np.fft.rfft(heard[4000:20000])).argmax() == 440
    np.testing.assert_array_equal(read_audio(path, start=1.2, end=1.7), heard[19200:27200])


@pytest.mark.parametrize("kind", ["GSM610", "G721_32", "NMS_ADPCM_16"])
def test_formats_that_cannot_seek_are_read_on(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("sounding.data.audio.BLOCK_SECONDS", 1)
    path = tmp_path / "call.wav"
    sf.write(path, tone(3.0, 8000), 8000, subtype=kind)
    with sf.SoundFile(path) as file:
        assert not file.seekable()
    blocks = list(audio_blocks(path, rate=8000))
    assert len(blocks) >= 3
    whole = read_audio(path, rate=8000)
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    np.testing.assert_array_equal(read_audio(path, rate=8000, start=1.5, end=2), whole[12000:16000])


def test_names_that_libsndfile_reads_are_looked_for_in_a_directory():
    assert {".wav", ".wave", ".oga", ".aifc", ".mp2", ".sph", ".rf64", ".caf", ".snd"} <= SUFFIXES
    assert {".m4a", ".mp4", ".webm", ".mka", ".mkv", ".mov", ".amr", ".3gp", ".wma"} <= SUFFIXES
    assert not SUFFIXES & {".txt", ".csv", ".json", ".mat", ".raw", ".py", ".ts", ".jpg"}


def test_ogg_streams_that_were_chained_are_read_one_after_the_other(tmp_path):
    for name, subtype in (("a.ogg", "VORBIS"), ("a.opus", "OPUS")):
        content = b""
        for hertz in (440, 880):
            sf.write(tmp_path / name, tone(3.0, hertz=hertz), 16000, format="OGG", subtype=subtype)
            content += (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content)
        heard = lasts(tmp_path / name, 6.0, extra=0.0)
        for part, hertz in ((heard[8000:24000], 440), (heard[-24000:-8000], 880)):
            assert np.abs(np.fft.rfft(part)).argmax() == hertz


def test_chained_streams_of_several_rates_are_refused(tmp_path):
    content = b""
    for rate in (16000, 8000):
        sf.write(tmp_path / "a.ogg", tone(1.0, rate), rate)
        content += (tmp_path / "a.ogg").read_bytes()
    (tmp_path / "a.ogg").write_bytes(content)
    with pytest.raises(AudioError, match="joined in it differ in rate or channels"):
        read_audio(tmp_path / "a.ogg")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_file_without_its_end_is_an_error_or_a_warning(tmp_path, subtype):
    path = tmp_path / "a.ogg"
    noise = np.random.default_rng(0).normal(0, 0.1, 20 * 16000)
    sf.write(path, noise, 16000, format="OGG", subtype=subtype)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 4])
    for read in (*DECODERS, duration):
        with pytest.raises(AudioError, match="ends within a page"):
            read(path)
    path.write_bytes(content[: content.rindex(b"OggS")])  # between two pages: it may be a dump
    for read in DECODERS:
        with pytest.warns(IncompleteAudioWarning, match="the last page of the stream is missing"):
            assert 17 < len(read(path)) / 16000 < 20


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.au", "a.w64", "a.caf", "a.flac"])
def test_files_joined_as_bytes_are_refused_where_only_the_first_would_be_read(write, name):
    path = write(tone(1.0), name=name)
    content = path.read_bytes()
    path.write_bytes(content + content)
    for read in DECODERS:
        with pytest.raises(AudioError, match="several files were joined in it"):
            read(path)


# --- the length that a header announces -------------------------------------------------------

ANNOUNCING = [
    ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "IMA_ADPCM"), ("WAV", "GSM610"),
    ("WAVEX", "FLOAT"), ("RF64", "PCM_16"), ("W64", "PCM_16"), ("AIFF", "PCM_16"),
    ("AIFF", "FLOAT"), ("AU", "PCM_16"), ("AU", "ULAW"), ("CAF", "PCM_16"), ("NIST", "PCM_16"),
    ("SVX", "PCM_16"),
]  # fmt: skip


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
@pytest.mark.parametrize(("form", "subtype"), ANNOUNCING)
def test_a_file_that_was_cut_is_an_error_not_a_shorter_clip(tmp_path, form, subtype, share):
    path = tmp_path / "a.audio"
    sf.write(path, tone(4.0), 16000, format=form, subtype=subtype)
    content = path.read_bytes()
    path.write_bytes(content[: round(share * len(content))])
    for read in (*DECODERS, duration):
        with pytest.raises(AudioError, match="% of what the header announces are missing"):
            read(path)
    assert announced_bytes(path) == pytest.approx(len(content), abs=16)


@pytest.mark.parametrize("form", ["FLAC", "MAT4", "SDS", "WVE", "MP3"])
def test_other_formats_that_were_cut_are_an_error_too(tmp_path, form):
    rate, subtype = (8000, "ALAW") if form == "WVE" else (16000, None)
    sf.write(tmp_path / "a.audio", uneven(4.0), rate, format=form, subtype=subtype)
    content = (tmp_path / "a.audio").read_bytes()
    (tmp_path / "a.audio").write_bytes(content[: len(content) // 4])
    for read in DECODERS:
        with pytest.raises(AudioError, match="cannot be decoded"):
            read(tmp_path / "a.audio")


def field(content: bytes, mark: bytes, form: str, *values: tuple[int, int]) -> bytes:
    """A file with other numbers at (offset from a mark, value)."""
    made = bytearray(content)
    for offset, value in values:
        struct.pack_into(form, made, content.index(mark) + offset, value)
    return bytes(made)


UNKNOWN = {
    "ffmpeg to a pipe": ("WAV", b"RIFF", "<I", (4, 0xFFFFFFFF), (40, 0xFFFFFFFF)),
    "sox to a pipe": ("WAV", b"RIFF", "<I", (4, 0x7FFFF024), (40, 0x7FFFF000)),
    "arecord": ("WAV", b"RIFF", "<I", (4, 0x80000024), (40, 0x80000000)),
    "less what stands in front": ("WAV", b"RIFF", "<I", (4, 0xFFFFFFFF), (40, 0xFFFFFFD3)),
    "never closed": ("WAV", b"RIFF", "<I", (4, 0), (40, 0)),
    "python's wave": ("WAV", b"RIFF", "<I", (4, 36), (40, 0)),
    "au": ("AU", b".snd", ">I", (8, 0xFFFFFFFF)),
    "au never closed": ("AU", b".snd", ">I", (8, 0)),
    "aiff": ("AIFF", b"SSND", ">I", (4, 0)),
    "aiff of a stream": ("AIFF", b"SSND", ">I", (4, 8)),
    "caf": ("CAF", b"data", ">q", (4, -1)),
    "w64": ("W64", b"data\xf3", "<Q", (16, 2**64 - 1)),
    "rf64": ("RF64", b"ds64", "<Q", (8, 0), (16, 0), (24, 0)),
}


@pytest.mark.parametrize("writer", UNKNOWN)
def test_a_writer_that_did_not_know_the_length_announces_nothing(tmp_path, writer):
    form, mark, layout, *values = UNKNOWN[writer]
    path = tmp_path / "stream"
    sf.write(path, tone(2.0), 16000, format=form, subtype="PCM_16")
    path.write_bytes(field(path.read_bytes(), mark, layout, *values))
    assert announced_bytes(path) is None
    np.testing.assert_allclose(lasts(path, 2.0, extra=0.0), tone(2.0), atol=1e-4)


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.w64", "a.au", "a.sph"])
@pytest.mark.parametrize(
    "more",
    [b"LIST\x04\0\0\0INFO", b"id3 \x10\0\0\0" + b"ID3\4" * 4, bytes(5000), b"TAG" + b"x" * 125],
)
def test_what_stands_behind_the_audio_is_neither_audio_nor_a_fault(write, name, more):
    options = {"format": "NIST"} if name == "a.sph" else {}
    path = write(tone(1.0)[:-1], name=name, subtype="PCM_16", **options)
    path.write_bytes(path.read_bytes() + more)
    assert len(lasts(path, 15999 / 16000, extra=0.0)) == 15999


def test_a_pad_byte_that_is_not_there_is_no_fault(tmp_path):
    sf.write(tmp_path / "a.wav", tone(1.0)[:-1], 16000, subtype="PCM_U8")
    content = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(content[: 44 + 15999])
    assert len(lasts(tmp_path / "a.wav", 15999 / 16000, extra=0.0)) == 15999


def test_chunks_in_front_of_the_samples_are_passed_over(tmp_path):
    sf.write(tmp_path / "a.wav", tone(1.0), 16000)
    content = (tmp_path / "a.wav").read_bytes()
    more = b"LIST" + struct.pack("<I", 5) + b"INFOx\0"
    (tmp_path / "a.wav").write_bytes(content[:36] + more + content[36:])
    assert announced_bytes(tmp_path / "a.wav") == len(content) + 14
    lasts(tmp_path / "a.wav", 1.0, extra=0.0)


def test_more_audio_than_the_header_announces_is_not_left_out(tmp_path):
    """A recorder that was killed, or a file of more than 4 GB whose size wrapped round."""
    sf.write(tmp_path / "a.wav", tone(4.0), 16000)
    content = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(field(content, b"data", "<I", (4, 32000)))
    for read in (*DECODERS, duration):
        with pytest.raises(AudioError, match="96000 bytes behind the audio are not in its header"):
            read(tmp_path / "a.wav")


def test_announced_bytes_tell_when_a_file_is_whole(write):
    for name in ("a.wav", "a.aiff", "a.au", "a.w64", "a.caf"):
        path = write(tone(1.0), name=name)
        content = path.read_bytes()
        assert announced_bytes(path) == len(content)
        for size in (64, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:size])
            assert (announced_bytes(path) or len(content)) == len(content)
    for name in ("a.flac", "a.mp3", "a.ogg"):
        assert announced_bytes(write(tone(1.0), name=name)) is None
    assert announced_bytes(write(np.zeros(0))) == 44
    with pytest.raises(AudioError, match="no such file"):
        announced_bytes("none.wav")


# --- what is no file --------------------------------------------------------------------------


@pytest.mark.parametrize("read", [*ALL_READERS, in_blocks, announced_bytes])
def test_a_pipe_a_socket_and_a_device_never_hang(tmp_path, read):
    os.mkfifo(tmp_path / "a.wav")
    places = [tmp_path / "a.wav", Path("/dev/null")]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.wav"))
        for path in [*places, tmp_path / "s.wav"]:
            failures: list[Exception] = []

            def attempt(path=path, failures=failures):
                with pytest.raises(AudioError) as error:
                    read(path)
                failures.append(error.value)

            thread = threading.Thread(target=attempt, daemon=True)
            thread.start()
            thread.join(10)
            assert "not a regular file" in str(failures[0])
            assert "sounding transcribe -" in str(failures[0])


@pytest.mark.parametrize("read", ALL_READERS)
@pytest.mark.parametrize("name", ["a\0.wav", "x" * 300 + ".wav", "clip.wav/inside.wav"])
def test_names_that_no_file_has_are_an_error(write, tmp_path, read, name):
    write(tone(0.5))
    with pytest.raises(AudioError, match=r"no such file|cannot be read"):
        read(tmp_path / name)


def test_a_name_that_is_not_utf8_is_read(write, tmp_path):
    for name in ("a.wav", "a.flac", "a.mp3", "a.ogg"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9" + name.encode()))
        try:
            write(tone(1.0), name=name).rename(path)
        except OSError:
            pytest.skip("this file system has no such names")
        lasts(path, 1.0)


# --- rates and channels -----------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1, 800, 3999, 2_000_000])
def test_a_rate_that_no_speech_has_is_refused(write, rate):
    path = write(np.full(20000, 0.1), rate)
    for read in (*DECODERS, duration):
        with pytest.raises(AudioError, match=rf"a rate of {rate} Hz, expected 4000 Hz, which"):
            read(path)


@pytest.mark.parametrize("rate", [4000, 192000])
def test_the_lowest_and_a_high_rate_are_read(write, rate):
    assert len(read_audio(write(tone(1.0, rate), rate))) == pytest.approx(16000, abs=1)


def upside_down(seconds=3.0) -> np.ndarray:
    return np.stack([tone(seconds), -tone(seconds)], axis=1)


@pytest.mark.parametrize("read", DECODERS)
@pytest.mark.parametrize("noise", [0, 1e-4])
def test_a_file_with_one_channel_upside_down_is_refused_with_what_to_do(write, read, noise):
    samples = upside_down() + np.random.default_rng(0).normal(0, noise, (48000, 2))
    path = write(samples.astype("f4"), subtype="FLOAT")
    with (
        pytest.warns(CancellingChannelsWarning),
        pytest.raises(AudioError, match=r"clip\.wav: one channel is the other upside.*ffmpeg"),
    ):
        read(path)


@pytest.mark.parametrize("read", DECODERS)
def test_channels_that_cancel_are_heard_and_told_of_once(write, monkeypatch, read):
    monkeypatch.setattr("sounding.data.audio.BLOCK_SECONDS", 1)
    samples = upside_down()
    samples[:, 1] *= 0.9  # a twentieth of it is left in the mean
    path = write(samples, subtype="FLOAT")
    with pytest.warns(CancellingChannelsWarning, match=r"clip\.wav: the channels cancel") as told:
        heard = read(path)
    np.testing.assert_array_equal(heard, tone(3.0))
    assert len(told) == 1


def quiet_centre() -> np.ndarray:
    """5.1 with speech in the centre channel alone."""
    samples = np.zeros((48000, 6), "f4")
    samples[:, 2] = tone(3.0)
    return samples


@pytest.mark.parametrize(
    "samples",
    [
        np.stack([tone(3.0), np.zeros(48000, "f4")], axis=1),
        np.stack([tone(3.0), tone(3.0)], axis=1),
        np.stack([tone(3.0), tone(3.0, hertz=550)], axis=1),
        np.random.default_rng(0).normal(0, 0.1, (48000, 2)).astype("f4"),
        np.random.default_rng(0).normal(0, 1e-7, (48000, 2)).astype("f4") * [1, -1]
        + upside_down() * 0,
        np.outer(tone(3.0), [1] + [0] * 15).astype("f4"),
        quiet_centre(),
    ],
    ids=["dead channel", "mono", "two tones", "noise", "nothing", "one of 16", "5.1"],
)
def test_channels_that_do_not_cancel_are_averaged(write, samples):
    path = write(samples.astype("f4"), subtype="FLOAT")
    with warnings.catch_warnings():
        warnings.simplefilter("error", CancellingChannelsWarning)
        warnings.simplefilter("ignore", SilentAudioWarning)
        heard = read_audio(path)
        np.testing.assert_array_equal(in_blocks(path), heard)
    np.testing.assert_allclose(heard, samples.astype("f4").mean(axis=1), atol=1e-7)


def test_channels_that_cancel_for_a_part_are_the_same_in_blocks_segments_and_whole(
    write, monkeypatch
):
    """A cable that is turned in the middle, not at the border of a second; noise in each."""
    monkeypatch.setattr("sounding.data.audio.BLOCK_SECONDS", 2)
    samples = np.stack([tone(7.3), tone(7.3)], axis=1)
    samples[40000:, 1] *= -1
    samples += np.random.default_rng(0).normal(0, 1e-3, samples.shape)
    path = write(samples.astype("f4"), subtype="FLOAT")
    with pytest.warns(CancellingChannelsWarning):
        whole = read_audio(path)
    for second in range(7):
        part = whole[16000 * second : 16000 * (second + 1)]
        assert np.sqrt(np.mean(part**2)) > 0.15
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CancellingChannelsWarning)
        np.testing.assert_array_equal(in_blocks(path), whole)
        for start, end in ((0.0, 2.6), (2.25, 2.75), (3.1, 7.3), (6.99, 7.1)):
            part = whole[round(start * 16000) : round(end * 16000)]
            np.testing.assert_array_equal(read_audio(path, start=start, end=end), part)
        np.testing.assert_array_equal(read_audio(path, max_seconds=2.9), whole[:46400])


def test_the_loudest_channel_is_taken_of_many_that_cancel(write):
    samples = np.outer(tone(1.0), [0.1, 0.5, -0.5, 0.1, -0.1, 0.1]).astype("f4")
    with pytest.warns(CancellingChannelsWarning):
        heard = read_audio(write(samples, subtype="FLOAT"))
    np.testing.assert_array_equal(heard, samples[:, 1])


def test_silence_is_told_of_block_by_block_too(write):
    with pytest.warns(SilentAudioWarning, match=r"clip\.wav: the audio is silent"):
        assert not in_blocks(write(np.zeros(16000))).any()


# --- samples in memory ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["<i2", ">i2", "i1", "i4", "u1"])
def test_integer_pcm_is_scaled_by_its_type(kind):
    wave = tone(0.1)
    info = np.iinfo(kind)
    middle, most = (128, 128) if kind == "u1" else (0, -info.min)
    pcm = np.round(wave.astype("f8") * (most - 1) + middle).astype(kind)
    np.testing.assert_allclose(as_float(pcm), wave, atol=2 / most + 1e-7)
    assert as_float(pcm).dtype == np.float32
    ends = as_float(np.array([info.min, info.max], kind))
    assert ends[0] == -1
    assert 0.99 < ends[1] <= 1


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", ">f4"])
def test_floats_keep_their_values_whatever_they_are(kind):
    values = [-1.5, 0.25, 0.0, 2.0]
    made = as_float(np.array(values, kind))
    assert made.dtype == np.float32
    assert made.dtype.isnative
    assert made.tolist() == values == as_float(values).tolist()


def test_float32_is_not_copied():
    wave = tone(0.1)
    assert as_float(wave) is wave


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(8, bool),
        np.zeros(8, complex),
        np.zeros(8, np.int64),
        np.zeros(8, np.uint16),
        np.array(["0.1"] * 8),
        np.array([None] * 8),
        [[0.1], [0.1, 0.2]],
    ],
    ids=lambda samples: str(getattr(samples, "dtype", "ragged")),
)
def test_samples_of_a_type_that_is_no_audio_are_refused(samples):
    with pytest.raises(AudioError, match="the audio: "):
        as_float(samples)


@pytest.mark.parametrize("value", [1e20, -1e20, 33, 128, 20000])
def test_values_that_no_audio_has_are_refused_and_named(write, value):
    samples = tone(2.0)
    samples[24000] = value
    path = write(samples, subtype="FLOAT")
    expected = (
        r"clip\.wav: 1 samples are beyond .*the first, sample 24000 at 1\.500 s, is "
        rf"{float(np.float32(value)):g}\), expected about -1 to 1: .*int16 by 32768".replace(
            "+", r"\+"
        )
    )
    for read in DECODERS:
        with pytest.raises(AudioError, match=expected):
            read(path)
    with pytest.raises(AudioError, match="the audio: 1 samples are beyond"):
        check_samples(samples, 16000, "the audio")


def test_integers_taken_for_floats_are_refused_even_of_quiet_speech():
    for kind, loud in ((np.int16, 0.003), (np.int32, 1e-6), (np.uint8, 0.1)):
        peak = np.iinfo(kind).max * loud + (128 if kind == np.uint8 else 0)
        with pytest.raises(AudioError, match="divided by their range"):
            check_samples((tone(0.5) * 2 * peak).astype("f4"), 16000, "the audio")


def test_floats_over_full_scale_are_audio(write):
    loud = tone(0.5) * 20
    np.testing.assert_array_equal(read_audio(write(loud, subtype="FLOAT")), loud)


@pytest.mark.parametrize(
    ("start", "end"), [(float("nan"), 1), (0.1, float("nan")), (-1, None), (0.4, 0.2), (0, np.inf)]
)
def test_a_segment_that_cannot_be_one_is_refused(write, start, end):
    with pytest.raises(AudioError, match=r"clip\.wav: a segment from .* expected 0 or more"):
        read_audio(write(tone(1.0)), start=start, end=end)


def test_a_segment_far_behind_the_end_is_refused_at_once(write):
    with pytest.raises(AudioError, match=r"the recording has 1\.00 s"):
        read_audio(write(tone(1.0)), start=1e300)
