"""NVDEC: the same numbers as the CPU's decoders, or an error that says so."""

from functools import partial
from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime as ort
import pytest
from av.codec.hwaccel import HWAccel
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from films import film, numbered, opened, pictures
from reflectrt.runtime.errors import ResourceError, UsageError
from reflectrt.runtime.media import container
from reflectrt.runtime.media.nvdec import PLANAR, planar
from reflectrt.runtime.options import MediaOptions

NO_SUCH_GPU = partial(HWAccel, "cuda", device="99", allow_software_fallback=False)


@pytest.mark.parametrize("packed", PLANAR)
def test_planes_are_parted_without_a_change_of_colour(packed: str) -> None:
    random = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
    reformatter = VideoReformatter()
    frame = reformatter.reformat(VideoFrame.from_ndarray(random), format=PLANAR[packed], threads=1)
    found = planar(reformatter.reformat(frame, format=packed, threads=1), reformatter)
    assert found.format.name == PLANAR[packed]
    for got, wanted in zip(found.planes, frame.planes, strict=True):
        assert bytes(got) == bytes(wanted)


def test_a_frame_of_the_cpu_s_stays_as_it_is() -> None:
    frame = VideoFrame(64, 48, "yuv444p")
    assert planar(frame, VideoReformatter()) is frame


def test_a_machine_without_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "accelerator", NO_SUCH_GPU)
    medium = opened(film(tmp_path / "film.mp4"), decoder="nvdec")
    with pytest.raises(ResourceError, match=r"NVDEC cannot decode .*film\.mp4 .*without --decoder nvdec"):
        pictures(medium)


def test_a_codec_that_it_lacks_is_an_error(tmp_path: Path) -> None:
    medium = opened(film(tmp_path / "film.mkv", codec="ffv1"), decoder="nvdec")
    with pytest.raises(ResourceError, match="it has none of the file's codecs"):
        pictures(medium)


def test_a_decoder_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="decoder is 'gpu'; pass cpu or nvdec"):
        MediaOptions(decoder="gpu")  # type: ignore[arg-type]  # that is the point


RELU = '<ir_version: 10, opset_import: ["": 21]> g (float[1] x) => (float[1] y) { y = Relu(x) }'


@pytest.fixture
def used_gpu() -> ort.InferenceSession:
    """A GPU that ONNX Runtime is on too, with a CUDA context of its own flags, as while questions are asked."""
    model = onnx.parser.parse_model(RELU).SerializeToString()
    session = ort.InferenceSession(model, providers=["CUDAExecutionProvider"])
    session.run(None, {"x": np.zeros(1, np.float32)})
    return session


@pytest.mark.gpu
@pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="no CUDA here")
@pytest.mark.usefixtures("used_gpu")
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9"])
def test_pictures_are_the_cpu_s(tmp_path: Path, codec: str) -> None:
    frames = [numbered(index, 448, 336) for index in range(40)]  # larger than the least that it takes
    path = film(tmp_path / "film.mkv", frames, codec=codec)
    for how in ({}, {"max_frames": 6}):
        np.testing.assert_array_equal(pictures(opened(path, decoder="nvdec", **how)), pictures(opened(path, **how)))
