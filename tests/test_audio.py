"""Audio files, good and bad, written by the tests themselves."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import soundfile as sf

from sounding.data.audio import (
    MIN_SECONDS,
    AudioError,
    SilentAudioWarning,
    as_float,
    check_length,
    duration,
    read_audio,
)

ALL_READERS = [read_audio, duration]


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
