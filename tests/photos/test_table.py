"""The table: one row per file, duplicates pointing at what stays, one picture in memory at a time."""

from __future__ import annotations

import networkx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from photoflux.params import ValidateParams
from photoflux.photos.table import clusters, read_folder, survey
from tests.photos.pictures import blurred, cropped, encoded, half, mirrored, photo

PARAMS = ValidateParams()


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20))
def test_clusters_are_connected_components(pairs: list[tuple[int, int]]):
    graph = networkx.Graph(pairs)
    graph.add_nodes_from(range(12))
    assert clusters(12, pairs) == sorted(sorted(part) for part in networkx.connected_components(graph))


def test_what_cannot_be_decoded_is_a_row_too():
    rows = survey([("a.jpg", b"nothing"), ("b.jpg", encoded(photo(1)))], params=PARAMS)
    assert [(row["decoded"], row["problem"]) for row in rows] == [(False, "not_a_photo"), (True, "")]
    assert rows[0]["sharpness"] is None


def test_each_decoded_picture_is_handed_on():
    kept = {}
    files = [("a.jpg", encoded(photo(1))), ("b.jpg", half(encoded(photo(2)))), ("c.png", encoded(photo(3), "PNG"))]
    survey(files, params=PARAMS, keep=lambda name, image: kept.update({name: image.size}))
    assert kept == {"a.jpg": (800, 800), "c.png": (800, 800)}


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_the_sharper_of_two_stays_whatever_its_name(order: tuple[str, str]):
    soft, sharp = (f"{name}.jpg" for name in order)
    files = {soft: encoded(blurred(photo(1), 1.0)), sharp: encoded(photo(1))}
    rows = {row["file"]: row for row in survey(sorted(files.items()), params=PARAMS)}
    assert rows[soft]["duplicate_of"] == sharp
    assert rows[sharp]["duplicate_of"] == ""


def test_a_crop_gives_way_to_the_whole_and_is_called_one():
    files = [("0-crop.jpg", encoded(cropped(photo(2)))), ("whole-picture.jpg", encoded(photo(2)))]
    crop, whole = survey(files, params=PARAMS)
    assert (crop["duplicate_of"], crop["duplicate_note"]) == ("whole-picture.jpg", " (cropped)")
    assert whole["duplicate_of"] == ""


def test_a_mirror_image_is_called_one():
    files = [("img.jpg", encoded(photo(3))), ("img-1.jpg", encoded(mirrored(photo(3))))]
    original, copy = survey(files, params=PARAMS)
    assert original["duplicate_of"] == ""
    assert (copy["duplicate_of"], copy["duplicate_note"]) == ("img.jpg", " (mirrored)")


def test_an_unusable_photo_is_never_the_one_that_stays():
    tiny = photo(4).resize((300, 300))
    large = blurred(photo(4), 0.4)
    rows = survey([("tiny.jpg", encoded(tiny)), ("large.jpg", encoded(large))], params=PARAMS)
    assert [row["duplicate_of"] for row in rows] == ["large.jpg", ""]


def test_chains_of_copies_point_at_one():
    files = [(f"{i}.jpg", encoded(photo(5).crop((i * 40, 0, 800, 800)))) for i in range(4)]
    rows = survey(files, params=PARAMS)
    assert [row["duplicate_of"] for row in rows] == ["", "0.jpg", "0.jpg", "0.jpg"]


def test_backgrounds_are_counted_and_closeness_known():
    rows = survey([(f"{i}.jpg", encoded(photo(i))) for i in range(3)], params=PARAMS)
    assert len({row["background"] for row in rows}) == 3
    assert all(0 < row["closest"] < 0.75 for row in rows)


def test_a_folder_is_read_by_name(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"1")
    assert list(read_folder([tmp_path / "a.jpg"])) == [("a.jpg", b"1")]
