"""Names of datasets to places on disk."""

import pytest

from jrdp.config import Config, parse_config
from jrdp.data import catalog
from jrdp.data.coco import CocoDataset, JoinedDataset
from jrdp.errors import UserError


@pytest.mark.parametrize("name", catalog.CATALOG)
def test_missing_datasets_say_what_is_expected_where(tmp_path, name):
    with pytest.raises(UserError) as raised:
        catalog.locate(name, tmp_path)
    entry = catalog.CATALOG[name]
    for words in (str(tmp_path / entry.images), str(tmp_path / entry.annotations), "docs/data.md"):
        assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_released_layout_is_found(tmp_path):
    for entry in catalog.CATALOG.values():
        (tmp_path / entry.images).mkdir(parents=True, exist_ok=True)
        (tmp_path / entry.annotations).write_text("{}")
    places = {name: catalog.locate(name, tmp_path) for name in catalog.CATALOG}
    assert len({place.annotations for place in places.values()}) == len(places)
    assert places["come_h_test"].images == tmp_path / "COME15K/COME-H/RGB"
    assert places["isod_train"].expected_pictures == 500


def test_any_json_from_the_working_directory_or_the_root(tmp_path, tiny_set, monkeypatch):
    tiny_set.write()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    below_root = catalog.locate("imgs:set.json", tmp_path)
    monkeypatch.chdir(tmp_path)
    here = catalog.locate("imgs:set.json", elsewhere)
    absolute = catalog.locate(f"{tiny_set.images}:{tiny_set.json}", elsewhere)
    for place in (below_root, here, absolute):
        assert place.images.resolve() == tiny_set.images and place.annotations.resolve() == tiny_set.json
        assert place.expected_pictures is None
    with pytest.raises(UserError, match="missing the file .*other.json"):
        catalog.locate("imgs:other.json", tmp_path)
    with pytest.raises(UserError, match="missing the folder set.json"):
        catalog.locate("set.json:imgs", tmp_path)


@pytest.mark.parametrize("name", ["isod", "", "a.json", ":x.json", "imgs:"])
def test_names_that_are_none(tmp_path, name):
    with pytest.raises(UserError, match="images_folder:annotations.json"):
        catalog.locate(name, tmp_path)


def test_load_dataset_joins_several(tmp_path, tiny_set):
    tiny_set.write()
    config = parse_config({"data": {"root": str(tmp_path)}}, "test")
    one = catalog.load_dataset(["imgs:set.json"], config, training=True)
    two = catalog.load_dataset(["imgs:set.json", "imgs:set.json"], config, training=True)
    assert isinstance(one, CocoDataset) and isinstance(two, JoinedDataset)
    assert len(one) == 3 and len(two) == 6
    assert [two.image_id(index) for index in range(6)] == [10, 20, 30] * 2
    assert two.path(4) == one.path(1) and two.size(4) == one.size(1) and two.original_size(5) == (50, 50)
    assert two.example(4).image.image_id == 20
    with pytest.raises(IndexError):
        two.example(6)
    with pytest.raises(UserError, match="no dataset"):
        catalog.load_dataset([], Config(), training=False)
