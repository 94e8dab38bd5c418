"""The colours around a face: clothes and background count, the face, the side and the light do not, or hardly."""

import numpy as np
import pytest

from foldface.data.photos import cv2
from foldface.faces import surroundings

BOX = np.array([70.0, 40, 130, 110])


def photo(wall=(200, 180, 60), shirt=(40, 60, 160), face=(210, 170, 150)):
    """A person before a wall: (240, 200, 3) uint8, not the same on both sides."""
    image = np.full((240, 200, 3), wall, np.uint8)
    image[:, :40] = image[:, :40] // 2
    image[130:] = shirt
    image[40:110, 70:130] = face
    return image


def away(one, other, box=BOX):
    return np.linalg.norm(surroundings.around_face(one, BOX) - surroundings.around_face(other, box))


def test_clothes_and_background_tell_photos_apart_and_the_face_does_not():
    assert away(photo(), photo(face=(20, 20, 20))) == pytest.approx(0, abs=1e-3)
    assert away(photo(), photo(shirt=(180, 30, 40))) > 10 and away(photo(), photo(wall=(20, 120, 200))) > 10


def test_a_mirrored_moved_or_brighter_photo_is_nearly_the_same():
    other = away(photo(), photo(shirt=(180, 30, 40)))
    mirrored = BOX.copy()
    mirrored[[0, 2]] = 200 - BOX[[2, 0]]
    assert away(photo(), photo()[:, ::-1].copy(), mirrored) < 0.1 * other
    moved = cv2.warpAffine(photo(), np.float32([[1, 0, 12], [0, 1, 8]]), (200, 240), borderMode=cv2.BORDER_REPLICATE)
    assert away(photo(), moved, BOX + [12, 8, 12, 8]) < 0.3 * other
    assert away(photo(), cv2.convertScaleAbs(photo(), alpha=0.9)) < 0.5 * other


@pytest.mark.parametrize("box", [[np.nan] * 4, [-50, -50, 500, 500], [0, 0, 0, 0], [1e6, 1e6, 1e6 + 5, 1e6 + 5]])
def test_any_box_and_size_gives_numbers(box):
    for shape in ((240, 200), (1, 1), (3, 900)):
        found = surroundings.around_face(np.full((*shape, 3), 90, np.uint8), np.array(box, float))
        assert found.shape == surroundings.around_face(photo(), BOX).shape and np.isfinite(found).all()
