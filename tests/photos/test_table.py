"""The table: one row per file, duplicates pointing at what stays, one picture in memory at a time."""

from __future__ import annotations

import networkx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from photoflux.params import ValidateParams
from photoflux.photos.inspect import Likeness
from photoflux.photos.table import clusters, is_same, photo_table, read_files
from tests.photos.pictures import blurred, cartoon, cropped, encoded, half, mirrored, photo

PARAMS = ValidateParams()


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20))
def test_clusters_are_connected_components(pairs: list[tuple[int, int]]):
    graph = networkx.Graph(pairs)
    graph.add_nodes_from(range(12))
    assert clusters(12, pairs) == sorted(sorted(part) for part in networkx.connected_components(graph))


def test_what_cannot_be_decoded_is_a_row_too():
    rows = photo_table([("a.jpg", b"nothing"), ("b.jpg", encoded(photo(1)))], params=PARAMS)
    assert [(row["decoded"], row["problem"]) for row in rows] == [(False, "not_a_photo"), (True, "")]
    assert rows[0]["sharpness"] is None


def test_each_decoded_picture_is_handed_on():
    kept = {}
    files = [("a.jpg", encoded(photo(1))), ("b.jpg", half(encoded(photo(2)))), ("c.png", encoded(photo(3), "PNG"))]
    photo_table(files, params=PARAMS, on_decoded=lambda name, image: kept.update({name: image.size}))
    assert kept == {"a.jpg": (800, 800), "c.png": (800, 800)}


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_the_sharper_of_two_stays_whatever_its_name(order: tuple[str, str]):
    soft, sharp = (f"{name}.jpg" for name in order)
    files = {soft: encoded(blurred(photo(1), 1.0)), sharp: encoded(photo(1))}
    rows = {row["file"]: row for row in photo_table(sorted(files.items()), params=PARAMS)}
    assert rows[soft]["duplicate_of"] == sharp
    assert rows[sharp]["duplicate_of"] == ""


def test_a_crop_gives_way_to_the_whole_and_is_called_one():
    files = [("0-crop.jpg", encoded(cropped(photo(2)))), ("whole-picture.jpg", encoded(photo(2)))]
    crop, whole = photo_table(files, params=PARAMS)
    assert (crop["duplicate_of"], crop["duplicate_note"]) == ("whole-picture.jpg", " (cropped)")
    assert whole["duplicate_of"] == ""


def test_a_mirror_image_is_called_one():
    files = [("img.jpg", encoded(photo(3))), ("img-1.jpg", encoded(mirrored(photo(3))))]
    original, copy = photo_table(files, params=PARAMS)
    assert original["duplicate_of"] == ""
    assert (copy["duplicate_of"], copy["duplicate_note"]) == ("img.jpg", " (mirrored)")


def test_an_unusable_photo_is_never_the_one_that_stays():
    tiny = photo(4).resize((300, 300))
    large = blurred(photo(4), 0.4)
    rows = photo_table([("tiny.jpg", encoded(tiny)), ("large.jpg", encoded(large))], params=PARAMS)
    assert [row["duplicate_of"] for row in rows] == ["large.jpg", ""]


@pytest.mark.parametrize(
    ("phash", "dhash", "correlation", "same"),
    [(16, 7, 0.78, False), (18, 5, 0.79, False), (12, 0, 0.59, True), (14, 5, 0.87, True), (24, 9, 0.95, True), (10, 20, 0.2, True)],
    ids=["other pose", "another pose", "turned by 4 degrees", "framed", "cropped", "as a whole"],
)  # fmt: skip
def test_like_slopes_alone_make_no_copy(phash: int, dhash: int, correlation: float, same: bool):
    """As measured: of two pictures of one cartoon figure on white, and of photos and their copies."""
    assert is_same(Likeness(False, phash, dhash, correlation, False, 1.0), params=PARAMS) is same


def test_poses_of_a_drawn_figure_are_told_apart_and_its_copies_are_found():
    pose = cartoon()
    drawn = {
        "pose": pose,
        "arms": cartoon(arms=True),
        "turned": cartoon(turned=True),
        "mirrored": mirrored(pose),
        "tilted": pose.rotate(2, fillcolor="white"),
    }
    rows = photo_table([(name, encoded(picture, "PNG")) for name, picture in drawn.items()], params=PARAMS)
    assert [row["duplicate_of"] for row in rows] == ["", "", "", "pose", "pose"]


def test_chains_of_copies_point_at_one():
    files = [(f"{i}.jpg", encoded(photo(5).crop((i * 40, 0, 800, 800)))) for i in range(4)]
    rows = photo_table(files, params=PARAMS)
    assert [row["duplicate_of"] for row in rows] == ["", "0.jpg", "0.jpg", "0.jpg"]


def test_backgrounds_are_counted_and_closeness_known():
    rows = photo_table([(f"{i}.jpg", encoded(photo(i))) for i in range(3)], params=PARAMS)
    assert len({row["background"] for row in rows}) == 3
    assert all(0 < row["closest"] < 0.75 for row in rows)


def test_a_folder_is_read_by_name(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"1")
    assert list(read_files({"a.jpg": tmp_path / "a.jpg"})) == [("a.jpg", b"1")]
