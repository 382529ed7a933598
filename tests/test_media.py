"""Containers that libsndfile does not know, by PyAV and by ffmpeg; PyAV writes them."""

from __future__ import annotations

import shutil
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from sounding.data import media
from sounding.data.audio import (
    AudioError,
    IncompleteAudioWarning,
    audio_blocks,
    duration,
    read_audio,
)

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'sounding[media]'")

RATE = 48000


def tone(seconds: float, hertz: float = 440.0, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype("f4")


def frames(samples: np.ndarray, rate: int, layout: str, form: str, start: float = 0.0):
    """Frames of 20 ms. Shape: samples [channels, samples]."""
    size = rate // 50
    for first in range(0, samples.shape[1], size):
        part = np.ascontiguousarray(samples[:, first : first + size])
        if not form.endswith("p"):
            part = part.T.reshape(1, -1)
        if form.startswith("s16"):
            part = np.round(part * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(part, format=form, layout=layout)
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = round(start * rate) + first
        yield frame


def write(
    path: Path,
    *streams: list[tuple[float, np.ndarray]],
    codec: str,
    rate: int = RATE,
    layout: str = "mono",
    form: str = "fltp",
    video: float = 0.0,
    container: str | None = None,
    **options: str,
) -> Path:
    """Streams of [(start in seconds, samples)], and as many seconds of video in front of them."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    with av.open(str(path), "w", format=container, options=options) as file:
        packets = []
        if video:
            moving = file.add_stream("mpeg4", rate=10)
            moving.width = moving.height = 32
            moving.pix_fmt = "yuv420p"
        outputs = [file.add_stream(codec, rate=rate, layout=layout, format=form) for _ in streams]
        for number in range(round(10 * video)):
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
            picture.pts = number
            packets += moving.encode(picture)
        packets += moving.encode(None) if video else []
        for output, parts in zip(outputs, streams, strict=True):
            for start, samples in parts:
                for frame in frames(np.atleast_2d(samples), rate, layout, form, start):
                    packets += output.encode(frame)
            packets += output.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            file.mux(packet)
    return path


@pytest.fixture(params=["PyAV", "ffmpeg"])
def decoder(request, monkeypatch):
    """Each of the two programs, with the other one away."""
    if request.param == "ffmpeg":
        if shutil.which("ffmpeg") is None:
            pytest.skip("no program ffmpeg on the PATH")
        monkeypatch.setitem(sys.modules, "av", None)
    else:
        monkeypatch.setattr(shutil, "which", lambda name: None)
    return request.param


def in_blocks(path: Path) -> np.ndarray:
    return np.concatenate(list(audio_blocks(path)))


def heard(path: Path, seconds: float) -> np.ndarray:
    """The audio, of which every reader finds as much, with up to 0.1 s that an encoder added."""
    samples = read_audio(path)
    assert seconds - 0.02 <= len(samples) / 16000 <= seconds + 0.1
    np.testing.assert_array_equal(in_blocks(path), samples)
    assert duration(path) == pytest.approx(seconds, abs=0.1)
    return samples


def pitch(samples: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * 16000 / len(samples))


KINDS = [
    ("a.m4a", "aac", RATE, {}),
    ("a.mp4", "aac", 16000, {}),
    ("a.mov", "pcm_s16le", 44100, {"form": "s16"}),
    ("a.m4a", "alac", 44100, {"form": "s16p"}),
    ("a.webm", "libopus", RATE, {}),
    ("a.mka", "libopus", RATE, {}),
    ("a.mkv", "aac", 22050, {}),
    ("a.aac", "aac", RATE, {"container": "adts"}),
    ("a.amr", "libopencore_amrnb", 8000, {"container": "amr", "form": "s16"}),
    ("a.3gp", "aac", 32000, {}),
    ("a.flv", "aac", 44100, {}),
    ("a.avi", "libmp3lame", 44100, {}),
    ("a.ac3", "ac3", RATE, {}),
    ("a.m2ts", "aac", RATE, {"container": "mpegts"}),
    ("a.mp4", "aac", RATE, {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    ("a.oga", "flac", 16000, {"container": "ogg", "form": "s16"}),
    ("a.wav", "libmp3lame", 44100, {}),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "codec", "rate", "options"), KINDS, ids=[f"{k[1]} in {k[0]}" for k in KINDS]
)
def test_a_container_is_read_to_its_end(tmp_path, decoder, name, codec, rate, options):
    path = write(tmp_path / name, [(0, tone(4.0, rate=rate))], codec=codec, rate=rate, **options)
    samples = heard(path, 4.0)
    assert pitch(samples[8000:56000]) == pytest.approx(440, abs=0.5)
    assert np.sqrt(np.mean(samples[8000:56000] ** 2)) == pytest.approx(0.354, abs=0.06)
    whole = read_audio(path, rate=rate)  # resampled, a segment has borders of its own
    part = read_audio(path, rate=rate, start=1.5, end=2.5)
    np.testing.assert_array_equal(part, whole[round(1.5 * rate) : round(2.5 * rate)])


@pytest.mark.parametrize(("layout", "channels"), [("stereo", 2), ("5.1", 6)])
def test_channels_of_a_container_are_averaged(tmp_path, decoder, layout, channels):
    samples = np.outer(np.arange(1, channels + 1) / channels, tone(2.0))
    path = write(tmp_path / "a.mka", [(0, samples)], codec="flac", layout=layout, form="s16")
    mean = (channels + 1) / (2 * channels)
    assert np.abs(heard(path, 2.0)).max() == pytest.approx(0.5 * mean, abs=0.01)


def test_the_first_audio_stream_of_several_and_of_a_video_is_read(tmp_path, decoder):
    streams = [(0, tone(3.0))], [(0, tone(3.0, 880))]
    path = write(tmp_path / "a.mp4", *streams, codec="aac", video=5.0)
    assert pitch(heard(path, 3.0)[8000:40000]) == pytest.approx(440, abs=1)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_audio_that_begins_behind_its_video_keeps_its_place_in_time(tmp_path, decoder, name):
    path = write(tmp_path / name, [(2.0, tone(3.0))], codec="aac", video=5.0)
    samples = heard(path, 5.0)
    assert not samples[:31000].any()
    assert np.abs(samples[33000:60000]).max() > 0.4


def test_silence_is_where_a_recorder_paused_and_that_is_told(tmp_path, decoder):
    parts = [(0, tone(2.0)), (4.0, tone(2.0))]
    path = write(tmp_path / "a.webm", parts, codec="libopus")
    if decoder == "PyAV":
        with pytest.warns(IncompleteAudioWarning, match=r"no audio from 2\.0. to 4\.0. s") as told:
            samples = read_audio(path)
        assert len(told) == 1
    else:  # which does not tell
        samples = read_audio(path)
    assert len(samples) == pytest.approx(6 * 16000, abs=1000)
    assert not samples[33000:63000].any()
    assert np.abs(samples[65000:95000]).max() > 0.4


@pytest.mark.filterwarnings("ignore:.*ffmpeg says")
@pytest.mark.parametrize("read", [read_audio, in_blocks])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.m4a", "aac", {"movflags": "faststart"}), ("a.webm", "libopus", {}), ("a.flv", "aac", {})],
)
def test_a_container_that_was_cut_is_an_error(tmp_path, decoder, read, name, codec, options):
    rate = 44100 if name == "a.flv" else RATE
    noise = np.random.default_rng(0).normal(0, 0.1, 6 * rate).astype("f4")
    path = write(tmp_path / name, [(0, noise)], codec=codec, rate=rate, **options)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    with pytest.raises(AudioError, match=rf"{name}: cannot be decoded \(\d\.\d\d s of what the"):
        read(path)


@pytest.mark.parametrize("read", [read_audio, in_blocks, duration])
def test_a_container_without_its_index_or_with_nothing_in_it_is_an_error(tmp_path, decoder, read):
    path = write(tmp_path / "a.m4a", [(0, tone(2.0))], codec="aac")
    content = path.read_bytes()
    for made in (content[: len(content) // 2], content[:24], b"\0\0\0\x18ftypM4A "):
        path.write_bytes(made)
        with pytest.raises(AudioError, match=r"a\.m4a: cannot be decoded \(.*\), expected intact"):
            read(path)


@pytest.mark.parametrize(
    ("name", "codec", "form"),
    [("a.m4a", "aac", None), ("a.mka", "libopus", None), ("a.aac", "aac", "adts")],
)
def test_damage_in_the_middle_of_a_container_is_an_error_or_told(
    tmp_path, decoder, name, codec, form
):
    noise = np.random.default_rng(0).normal(0, 0.1, 6 * RATE).astype("f4")
    path = write(tmp_path / name, [(0, noise)], codec=codec, container=form)
    content, middle = bytearray(path.read_bytes()), path.stat().st_size // 2
    content[middle : middle + 8000] = bytes(8000)
    path.write_bytes(content)
    if name == "a.m4a" or (decoder == "ffmpeg" and name == "a.aac"):
        with pytest.raises(AudioError, match=r"cannot be decoded"):
            read_audio(path)
    else:
        with pytest.warns(IncompleteAudioWarning, match=r"no audio from|cannot be|ffmpeg says"):
            read_audio(path)


@pytest.mark.parametrize("read", [read_audio, in_blocks, duration])
def test_a_video_without_sound_is_an_error(tmp_path, decoder, read):
    path = write(tmp_path / "a.mp4", codec="aac", video=1.0)
    with pytest.raises(AudioError, match=r"a\.mp4: no audio stream in it"):
        read(path)


@pytest.mark.parametrize("name", ["a.m4a", "a.m3u8", "a.ffconcat"])
def test_a_list_of_other_files_is_not_followed(tmp_path, decoder, name):
    """What a stranger sends may name any file of this machine, or an address."""
    write(tmp_path / "other.m2ts", [(0, tone(2.0))], codec="aac", container="mpegts")
    lists = {
        "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nother.m2ts\n#EXT-X-ENDLIST\n",
        "a.ffconcat": "ffconcat version 1.0\nfile other.m2ts\n",
    }
    (tmp_path / name).write_text(lists.get(name, lists["a.m3u8"]))
    with pytest.raises(AudioError, match="cannot be decoded"):
        read_audio(tmp_path / name)


def test_a_name_is_no_address_and_no_option(tmp_path, decoder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = write(tmp_path / "a.m4a", [(0, tone(1.0))], codec="aac")
    for name in ("-a.m4a", "concat:a.m4a|a.m4a", "file:b.m4a", "a%03d.m4a"):
        shutil.copy(made, tmp_path / name)
        assert len(read_audio(name)) == pytest.approx(16000, abs=1000)


def test_hours_of_video_are_not_held_in_memory(tmp_path, decoder):
    """A block is given before what is behind it is decoded."""
    path = write(tmp_path / "a.m4a", [(0, tone(70.0, rate=8000))], codec="aac", rate=8000)
    blocks = audio_blocks(path)
    assert len(next(blocks)) == pytest.approx(30 * 16000, abs=500)
    blocks.close()
    assert sum(map(len, audio_blocks(path))) == pytest.approx(70 * 16000, abs=4000)
    assert len(read_audio(path, max_seconds=2)) == 32000


def test_without_either_the_error_says_how_to_get_there(tmp_path, monkeypatch):
    path = write(tmp_path / "my talk.m4a", [(0, tone(1.0))], codec="aac")
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for read in (read_audio, in_blocks, duration):
        with pytest.raises(AudioError) as error:
            read(path)
        text = str(error.value)
        assert text.startswith(f"{path}: cannot be decoded")
        assert 'pip install "sounding[media]"' in text
        assert "ffmpeg -i 'my talk.m4a' 'my talk.m4a.wav'" in text


def test_portions_are_the_pieces_cut_anew():
    whole = np.arange(50, dtype="f4")[:, None]
    for pieces in ([50], [1] * 50, [7, 0, 20, 23]):
        cut = np.split(whole, np.cumsum(pieces)[:-1])
        for first, stop, size in (
            (0, None, 8),
            (3, None, 50),
            (16, 40, 8),
            (48, 60, 4),
            (50, None, 4),
        ):
            made = list(media._portions(iter(cut), first, stop, size))
            assert all(len(block) == size for block in made[:-1])
            joined = np.concatenate([np.zeros((0, 1)), *made])
            np.testing.assert_array_equal(joined, whole[first:stop])
