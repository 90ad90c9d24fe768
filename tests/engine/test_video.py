"""Predicting a video: every frame, its detections, and the overlaid video; and what cannot be read."""

import json
import os
import struct

import cv2
import numpy as np
import pytest

from small_datasets import write_clip

import jrdp
from jrdp.engine.pictures import split_videos
from jrdp.engine.video import predict_video
from jrdp.errors import UserError


@pytest.fixture(scope="module")
def model(weights):
    return jrdp.load(weights, device="cpu", overrides=["input.min_size=64", "input.max_size=96"])


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    write_clip(path, 5)
    return path


def test_every_frame_is_predicted_and_drawn(model, clip, tmp_path):
    (tmp_path / "out").mkdir()
    assert predict_video(model, clip, tmp_path / "out", "clip", 0.1) == 5
    content = json.loads((tmp_path / "out" / "clip.json").read_text())
    assert content["fps"] == 10 and content["size"] == [64, 96] and content["frames"] == 5
    assert {result["image_id"] for result in content["results"]} == {0, 1, 2, 3, 4}
    drawn = cv2.VideoCapture(str(tmp_path / "out" / "clip.mp4"))
    assert int(drawn.get(cv2.CAP_PROP_FRAME_COUNT)) == 5 and drawn.get(cv2.CAP_PROP_FPS) == 10
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip.json", "clip.mp4"]
    # Frame by frame the same as predicting the decoded frame.
    more, first = cv2.VideoCapture(str(clip)).read()
    alone = model.predict(np.ascontiguousarray(first[:, :, ::-1]))
    scores = [result["score"] for result in content["results"] if result["image_id"] == 0]
    assert more and np.allclose(scores, alone.scores)


def test_frames_stops_early(model, clip, tmp_path):
    assert predict_video(model, clip, tmp_path, "short", 0.1, frames=2) == 2


class Stops:
    """A model that is interrupted at a frame, and counts what it is asked."""

    def __init__(self, model, at=None, error=KeyboardInterrupt):
        self.model, self.upright, self.at, self.error, self.asked = model, model.upright, at, error, 0

    def predict(self, picture):
        if self.asked == self.at:
            raise self.error
        self.asked += 1
        return self.model.predict(picture)


def test_an_ended_run_is_continued_without_predicting_again(model, clip, tmp_path, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    whole.mkdir(), out.mkdir()
    predict_video(model, clip, whole, "clip", 0.05)
    with pytest.raises(KeyboardInterrupt):
        predict_video(Stops(model, at=3), clip, out, "clip", 0.05)
    assert "3 frames of video" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["clip.partial.jsonl"]
    with open(out / "clip.partial.jsonl", "ab") as stream:
        stream.write(b'{"results": [{"cut')  # as a kill leaves it
    with pytest.raises(UserError, match="--resume with other inputs"):
        predict_video(model, clip, out, "clip", 0.5, resume=True)
    again = Stops(model)
    assert predict_video(again, clip, out, "clip", 0.05, resume=True) == 5 and again.asked == 2
    assert sorted(path.name for path in out.iterdir()) == ["clip.json", "clip.mp4"]
    assert (out / "clip.json").read_bytes() == (whole / "clip.json").read_bytes()
    assert np.array_equal(frames_of(out / "clip.mp4"), frames_of(whole / "clip.mp4"))
    predict_video(again, clip, out, "clip", 0.05)
    assert again.asked == 7  # without --resume, all of it


def frames_of(path):
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return np.array(frames)


def test_folders_that_killed_runs_left_are_removed(model, clip, tmp_path):
    from jrdp.files import lock_folder

    out = tmp_path / "out"
    for name, content in ((".clip.abcdefgh", "video.mp4"), (".clip.aaaaaaaa", "mine.txt"), (".clip.bbbbbbbb", "video.mp4")):
        (out / name).mkdir(parents=True)
        (out / name / content).write_bytes(b"x")
    handle = lock_folder(out / ".clip.bbbbbbbb")  # of a process that is at work
    predict_video(model, clip, out, "clip", 0.5, frames=1)
    os.close(handle)
    assert sorted(path.name for path in out.iterdir()) == [".clip.aaaaaaaa", ".clip.bbbbbbbb", "clip.json", "clip.mp4"]


def test_a_video_that_ends_early_is_complained_of(model, tmp_path):
    path = tmp_path / "cut.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (96, 64))
    for number in range(30):
        writer.write(np.random.default_rng(number).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    writer.release()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])
    said = []
    count = predict_video(model, path, tmp_path, "cut_out", 0.5, complain=said.append)
    assert 0 < count < 15 and len(said) == 1 and f"ends after {count} of the 30 frames" in said[0]
    predict_video(model, path, tmp_path, "cut_out", 0.5, frames=2, complain=said.append)
    assert len(said) == 1  # asked for no more


def test_what_is_no_video_leaves_nothing(model, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="bad.mp4"):
        predict_video(model, tmp_path / "bad.mp4", tmp_path / "out", "bad", 0.5)
    with pytest.raises(UserError, match="camera 99"):
        predict_video(model, 99, tmp_path / "out", "camera", 0.5)
    assert list((tmp_path / "out").iterdir()) == []


def test_videos_and_cameras_are_told_from_pictures(clip, tmp_path):
    (tmp_path / "7").mkdir()
    for suffix in (".3gp", ".MTS", ".mpg"):  # of telephones and cameras
        (tmp_path / f"clip{suffix}").write_bytes(clip.read_bytes())
        assert split_videos([tmp_path / f"clip{suffix}"])[1] == [tmp_path / f"clip{suffix}"]
    others, videos = split_videos([clip, tmp_path / "a.jpg", tmp_path / "7"])
    assert videos == [clip] and others == [tmp_path / "a.jpg", tmp_path / "7"]
    assert split_videos([type(clip)("0")]) == ([], [0])


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("degrees, matrix", [(90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))])
def test_a_video_is_turned_as_its_header_says(model, tmp_path, capsys, suffix, degrees, matrix):
    path = tmp_path / f"clip{suffix}"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (96, 64))
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:16, :24] = (0, 0, 255)  # red at the top left, BGR
    writer.write(frame)
    writer.release()
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44  # QuickTime's track header: a, b, u, c, d, ... in 16.16
    a, b, c, d = (value << 16 for value in matrix)
    data[place : place + 20] = struct.pack(">5i", a, b, 0, c, d)
    path.write_bytes(data)

    seen = []

    class Seen:
        upright, predict = True, staticmethod(lambda picture: seen.append(np.asarray(picture)) or model.predict(picture))

    out = tmp_path / "out"
    out.mkdir()
    predict_video(Seen, path, out, "clip", 0.5)
    height, width = (96, 64) if degrees != 180 else (64, 96)
    assert seen[0].shape == (height, width, 3)
    corner = {90: (8, width - 9), 180: (height - 9, width - 9), 270: (height - 9, 8)}[degrees]  # clockwise
    assert seen[0][corner][0] > 200 and seen[0][corner][1:].max() < 60
    assert json.loads((out / "clip.json").read_text())["size"] == [height, width]
    assert f"turned by {degrees} degrees" in capsys.readouterr().out
    Seen.upright = False
    predict_video(Seen, path, out, "clip", 0.5)
    assert seen[1].shape == (64, 96, 3) and seen[1][8, 8][0] > 200
