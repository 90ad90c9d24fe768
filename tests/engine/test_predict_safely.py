"""`jrdp predict` replaces no input, and loses nothing that was done."""

import json
import os
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jrdp.engine.pictures import (
    check_output_folder, list_pictures, output_names, refuse_replacing, split_videos, told_names
)
from jrdp.engine.predict import FINISHED_LATER, Outcome, collect, predict_files, tasks_of
from jrdp.engine.record import ASKED, NAME, Record, is_finished
from jrdp.errors import UserError
from jrdp.masks import PastedMasks


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "b.png", "c.jpg"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / name)
    return folder


def ready(picture):
    return SimpleNamespace(photo=Image.open(picture), prepared=None)


def test_results_never_go_where_inputs_are(photos, tmp_path):
    pictures = sorted(photos.iterdir())
    (tmp_path / "link").symlink_to(photos)
    for out in (photos, tmp_path / "link", photos / ".." / "photos"):
        with pytest.raises(UserError, match="name another"):
            check_output_folder([photos], pictures, out)
        with pytest.raises(UserError, match="b.png"):
            check_output_folder(pictures, pictures, out)  # b.png would become its own overlay
    check_output_folder([photos], pictures, tmp_path / "other")
    check_output_folder([pictures[0]], [pictures[0]], photos)  # beside a.jpg: a.png is free


def test_earlier_results_are_not_taken_for_pictures(photos):
    (photos / "a_instances.png").touch()
    files = [photos / "a.jpg", photos / "a_instances.png"]
    with pytest.raises(UserError, match="is, a result of"):
        check_output_folder(files, files, photos)
    clip = photos / "clip.mp4"
    clip.touch()
    with pytest.raises(UserError, match="clip.mp4"):
        check_output_folder([clip], [clip], photos)


def test_names_are_unique_over_everything_and_fit(tmp_path):
    names = output_names([tmp_path / "x.jpg", tmp_path / "X.png", tmp_path / "x_instances.jpg"])
    assert len({name.casefold() for name in names}) == 3
    assert output_names([tmp_path / "predictions.mp4"], taken=["predictions"]) == ["predictions_2"]
    long = output_names([tmp_path / ("ü" * 125 + end) for end in ("a.jpg", "b.jpg")])
    assert len(set(long)) == 2 and all(len(os.fsencode(f".{name}_instances.png")) <= 255 for name in long)


def test_results_tell_pictures_of_one_name_apart(tmp_path):
    pictures = [tmp_path / name for name in ("a/c/x.jpg", "b/c/x.jpg", "b/y.jpg", "x.png", "d/X.jpg")]
    assert told_names(pictures) == ["a/c/x.jpg", "b/c/x.jpg", "y.jpg", "x.png", "d/X.jpg"]
    assert told_names([Path("x.jpg"), Path("y.jpg")]) == ["x.jpg", "y.jpg"] and told_names([]) == []
    out = tmp_path / "out"
    out.mkdir()
    for picture in pictures:
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.touch()
    record = Record(out, {}, resume=False)
    tasks = record.remaining(tasks_of(pictures))
    collect(outcomes(tasks, out), len(pictures), out, record)
    written = json.loads((out / "predictions.json").read_text())
    assert [entry["file_name"] for entry in written] == told_names(pictures)


def test_a_picture_that_is_named_again_is_taken_once(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    for name in ("x.jpg", "y.jpg"):
        (tmp_path / "a" / name).touch()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a" / "x.jpg")  # a name of its own
    (tmp_path / "b").symlink_to("a")
    paths = [tmp_path / "a" / "y.jpg", tmp_path / "a", tmp_path / "a" / ".." / "a" / "x.jpg", tmp_path / "b", tmp_path / "link.jpg"]
    assert [path.name for path in list_pictures(paths)] == ["y.jpg", "x.jpg", "link.jpg"]
    assert "4 of the pictures are named again" in capsys.readouterr().err
    clip = tmp_path / "clip.mp4"
    clip.touch()
    assert split_videos([clip, clip, Path("0"), Path("0")]) == ([], [clip, 0])


def test_broken_links_in_a_folder_are_pictures_that_are_missed(tmp_path):
    (tmp_path / "x.jpg").touch()
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert [path.name for path in list_pictures([tmp_path])] == ["gone.png", "loop.png", "x.jpg"]


def test_what_names_hold_does_not_act_on_the_terminal(tmp_path, capsys):
    picture = tmp_path / "a\nb\x1b[31m\x9b.jpg"
    record = Record(tmp_path, {}, resume=False)
    (task,) = tasks_of([picture])
    collect([(task, Outcome([], f"cannot read image {picture}"))], 1, tmp_path, record)
    assert capsys.readouterr().err.splitlines()[-1].endswith("a b\\x1b[31m\\x9b.jpg")


def outcomes(tasks, out, stop_at=None):
    for task in tasks:
        if task.picture.name == stop_at:
            raise KeyboardInterrupt
        for suffix in (".png", "_instances.png"):
            (out / f"{task.name}{suffix}").touch()
        yield task, Outcome([{"image_id": task.image_id, "file_name": task.file_name, "score": 0.5}])


def predict(photos, out, stop_at=None, resume=False, asked="w"):
    pictures = sorted(photos.iterdir())
    record = Record(out, {"weights": asked}, resume)
    tasks = record.remaining(tasks_of(pictures))
    collect(outcomes(tasks, out, stop_at), len(pictures), out, record)
    return [task.picture.name for task in tasks]


def test_an_interrupted_run_is_continued(photos, tmp_path, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    whole.mkdir(), out.mkdir()
    predict(photos, whole)
    with pytest.raises(KeyboardInterrupt):
        predict(photos, out, stop_at="c.jpg")
    assert "2 pictures are kept" in capsys.readouterr().err
    with open(out / NAME, "ab") as stream:
        stream.write(b'{"picture": "cut')  # as a kill leaves it
    asked = {"weights": "w"}
    assert not is_finished(out, asked, tasks_of(sorted(photos.iterdir())))
    with pytest.raises(UserError, match="other weights"):
        predict(photos, out, resume=True, asked="v")
    assert predict(photos, out, resume=True) == ["c.jpg"]
    assert (out / "predictions.json").read_bytes() == (whole / "predictions.json").read_bytes()
    assert [entry["image_id"] for entry in json.loads((out / "predictions.json").read_text())] == [1, 2, 3]
    assert not (out / NAME).exists() and is_finished(out, asked, tasks_of(sorted(photos.iterdir())))
    assert (out / ASKED).read_bytes() == (whole / ASKED).read_bytes()


def test_a_finished_run_is_only_one_that_was_asked_the_same(photos, tmp_path):
    out, asked = tmp_path / "out", {"weights": "w"}
    out.mkdir()
    tasks = tasks_of(sorted(photos.iterdir()))
    predict(photos, out)
    assert is_finished(out, asked, tasks)
    with pytest.raises(UserError, match="other weights, settings or threshold than those of .*predictions.json, which is finished"):
        is_finished(out, {"weights": "v"}, tasks)
    assert not is_finished(out, asked, tasks_of(sorted(photos.iterdir())[:2]))  # predictions.json has more
    known = (out / ASKED).read_bytes()
    (out / ASKED).unlink()  # as an older version left it
    with pytest.raises(UserError, match="nothing says for which weights .* give another --out, or leave out --resume"):
        is_finished(out, asked, tasks)
    (out / ASKED).write_bytes(known)
    (out / "predictions.json").write_text("[]")
    assert not is_finished(out, asked, tasks)
    predict(photos, out)
    Image.fromarray(np.ones((9, 9, 3), np.uint8)).save(photos / "b.png")
    assert not is_finished(out, asked, tasks)  # another picture by that name
    predict(photos, out)
    with pytest.raises(KeyboardInterrupt):
        predict(photos, out, stop_at="c.jpg", asked="v")
    (out / NAME).unlink()  # as the refusal of another request advises: now the files are of two runs
    with pytest.raises(UserError, match="nothing says"):
        is_finished(out, asked, tasks)


def test_what_lies_where_the_request_goes_is_not_replaced(tmp_path):
    for content in ("mine", None):
        out = tmp_path / f"out-{content}"
        out.mkdir()
        (out / ASKED).write_text(content) if content else (out / ASKED).mkdir()
        with pytest.raises(UserError, match=f"{ASKED}.*(not from an earlier run|it is a folder)"):
            refuse_replacing(out, ["a"], [])
            Record(out, {}, resume=False)


def test_a_run_that_can_write_nothing_more_ends_and_keeps_what_is_done(tmp_path, capsys):
    tasks = tasks_of([tmp_path / f"{number}.jpg" for number in range(30)])
    asked = []

    def full_disk_after(most):
        for task in tasks:
            asked.append(task)
            good = len(asked) <= most or len(asked) == most + 3
            yield task, Outcome([{"score": 0.5}]) if good else Outcome([], "cannot write: No space left", unwritten=True)

    with pytest.raises(UserError, match="the files of 5 pictures in a row could not be written: .*No space left"):
        collect(full_disk_after(4), len(tasks), tmp_path, Record(tmp_path, {}, resume=False))
    assert len(asked) == 4 + 2 + 1 + 5 and (tmp_path / NAME).exists() and not (tmp_path / "predictions.json").exists()
    assert "5 pictures are kept in" in capsys.readouterr().err


def test_changed_pictures_and_lost_files_are_done_again(photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(KeyboardInterrupt):
        predict(photos, out, stop_at="c.jpg")
    (out / "a.png").unlink()
    Image.fromarray(np.ones((9, 9, 3), np.uint8)).save(photos / "b.png")
    assert predict(photos, out, resume=True) == ["a.jpg", "b.png", "c.jpg"]


def test_a_link_planted_where_the_record_goes_is_not_followed(photos, tmp_path):
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    victim.write_text("precious")
    (out / NAME).symlink_to(victim)
    with pytest.raises(UserError):
        predict(photos, out)
    assert victim.read_text() == "precious"


def test_two_runs_into_one_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with Record(out, {}, resume=False):
        with pytest.raises(UserError, match="another process is writing into"):
            with Record(out, {}, resume=False):
                pass
    with Record(out, {}, resume=False):
        pass


class Found:
    """A prediction without instances; `alive` counts those that somebody still holds."""

    alive = weakref.WeakSet()

    def __init__(self, photo):
        self.photo = np.asarray(photo)
        self.boxes, self.scores = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        self.alive.add(self)

    def pasted(self):
        nothing = np.zeros((0, 4), np.int64)
        return PastedMasks(np.zeros(0, "<u4"), np.zeros(1, np.int64), nothing, *self.photo.shape[:2])


@pytest.mark.parametrize("batch", [1, 3])
def test_memory_does_not_grow_with_the_folder(photos, tmp_path, batch):
    held = []

    class Model:
        upright, config = True, SimpleNamespace(test=SimpleNamespace(batch_size=batch))

        ready = staticmethod(ready)

        def predict_ready(self, pictures):
            held.append(len(Found.alive))
            return [Found(picture.photo) for picture in pictures]

    (tmp_path / "out").mkdir()
    assert predict_files(Model(), sorted(photos.iterdir()) * 10, tmp_path / "out", 0.5) == []
    assert len(held) == 30 // batch and max(held) <= FINISHED_LATER + batch
    assert len(list((tmp_path / "out").glob("*_instances.png"))) == 30


def test_a_killed_run_is_continued_as_the_command_asked(photos, tmp_path):
    """The record that the command opened is the one that is written, from its first line on."""
    from jrdp.config import Config
    from jrdp.engine.predict import predict_files

    class Killed:
        upright, config = True, Config()

        ready = staticmethod(ready)

        def predict_ready(self, pictures):
            raise KeyboardInterrupt

    out = tmp_path / "out"
    out.mkdir()
    asked = {"weights": "w", "threshold": 0.5}
    with pytest.raises(KeyboardInterrupt):
        predict_files(Killed(), sorted(photos.iterdir()), out, 0.5, Record(out, asked, resume=False))
    assert json.loads((out / NAME).read_text().splitlines()[0]) == {"asked": asked}
    Record(out, asked, resume=True)
    with pytest.raises(UserError, match="other weights"):
        Record(out, {**asked, "threshold": 0.1}, resume=True)
