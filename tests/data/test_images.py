"""Decoding of everything that lies in image folders, and resizing."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxad.data import images
from jaxad.errors import UserError


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colours(height=6, width=9, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_rgb_and_grey_png_decode_to_what_was_saved():
    rgb = colours()
    np.testing.assert_array_equal(images.decode(encoded(Image.fromarray(rgb))), rgb)
    grey = rgb[..., 0]
    np.testing.assert_array_equal(images.decode(encoded(Image.fromarray(grey))), np.stack([grey] * 3, -1))


def test_16_bit_grey_is_scaled_by_its_range_and_not_clipped():
    values = np.array([[0, 128, 129, 257, 300, 32768, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        decoded = images.decode(encoded(Image.fromarray(values), kind))
        np.testing.assert_array_equal(decoded[..., 1], np.round(values / 257))
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = images.decode(encoded(Image.fromarray(ramp)))[..., 0].ravel().astype(int)
    assert (np.diff(decoded) >= 0).all() and set(decoded) == set(range(256))


def test_16_bit_colour_is_within_one_level_of_its_scaled_value():
    cv2 = pytest.importorskip("cv2")
    values = np.random.default_rng(1).integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    data = cv2.imencode(".png", values[..., ::-1])[1].tobytes()
    assert np.abs(images.decode(data).astype(int) - np.round(values / 257)).max() <= 1
    assert images.describe(data) == ((5, 7), "RGB 16-bit")
    assert images.storable(data)[0] != data


def test_alpha_is_dropped_not_composited():
    rgba = np.dstack([colours(), np.zeros((6, 9), np.uint8)])
    np.testing.assert_array_equal(images.decode(encoded(Image.fromarray(rgba))), rgba[..., :3])
    grey_alpha = Image.fromarray(rgba[..., 0]).convert("LA")
    grey_alpha.putalpha(7)
    np.testing.assert_array_equal(images.decode(encoded(grey_alpha))[..., 2], rgba[..., 0])


def test_palette_is_looked_up_also_with_transparency():
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode=None).convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 0, 7, 8, 9])
    expected = [[[10, 20, 30], [200, 100, 0]], [[7, 8, 9], [200, 100, 0]]]
    for options in ({}, {"transparency": 1}):
        data = encoded(palette, **options)
        assert images.decode(data).tolist() == expected
        assert images.decode(images.storable(data)[0]).tolist() == expected


def test_cmyk_jpeg_and_one_bit_images_become_rgb():
    grey = np.repeat(np.array([[0, 255, 128, 64]], np.uint8), 16, 0).repeat(16, 1)
    cmyk = images.decode(encoded(Image.fromarray(grey).convert("CMYK"), "JPEG", quality=100))
    assert np.abs(cmyk[8, 8::16].astype(int) - np.array([0, 255, 128, 64])[:, None]).max() <= 3
    bits = images.decode(encoded(Image.fromarray(grey).convert("1")))
    assert set(np.unique(bits)) == {0, 255} and bits[8, 24].tolist() == [255, 255, 255]


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    data = encoded(Image.fromarray(colours(6, 9)), "JPEG", exif=exif)
    assert images.decode(data).shape == (6, 9, 3) and images.storable(data)[1] == (6, 9)


def test_32_bit_and_float_images_are_refused():
    with pytest.raises(UserError, match="a.tif holds 32-bit values; save it with 8 or 16 bits"):
        images.decode(encoded(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"), "a.tif")
    with pytest.raises(UserError, match="floating-point"):
        images.decode(encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.95])
def test_truncated_files_are_refused_by_name(tmp_path, kind, keep):
    data = encoded(Image.fromarray(colours(40, 50)), kind)
    path = tmp_path / "003.img"
    path.write_bytes(data[: int(len(data) * keep)])
    for read in (images.decode, images.decode_mask):
        with pytest.raises(UserError, match=r"003\.img is truncated or unreadable"):
            read(path)
    with pytest.raises(UserError, match=r"003\.img is truncated or unreadable"):
        images.storable(path.read_bytes(), str(path))


def test_missing_file_and_text_file_are_refused_in_one_line(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    for path, words in ((tmp_path / "a.png", "not an image"), (tmp_path / "b.png", "cannot be read")):
        with pytest.raises(UserError, match=words) as error:
            images.decode(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_mask_ids_colours_and_palettes_count_as_defect():
    ids = np.array([[0, 1, 9], [255, 0, 2]], np.uint8)
    expected = ids > 0
    for image in (
        Image.fromarray(ids),
        Image.fromarray(np.dstack([ids * 0, ids, ids * 0])),
        Image.fromarray(ids.astype(np.uint16) * 257),
    ):
        np.testing.assert_array_equal(images.decode_mask(encoded(image)), expected)
    opaque = Image.fromarray(np.dstack([ids, ids, ids, np.full_like(ids, 255)]))
    np.testing.assert_array_equal(images.decode_mask(encoded(opaque)), expected)
    palette = Image.fromarray(np.array([[0, 1, 1], [1, 0, 1]], np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    np.testing.assert_array_equal(images.decode_mask(encoded(palette)), expected)
    np.testing.assert_array_equal(images.decode_mask(encoded(Image.fromarray(expected))), expected)
    np.testing.assert_array_equal(images.decode_mask(encoded(Image.fromarray(ids)), above=127), ids > 127)


def test_jpeg_mask_is_free_of_ringing():
    mask = np.zeros((32, 40), np.uint8)
    mask[9:21, 11:29] = 255
    data = encoded(Image.fromarray(mask), "JPEG", quality=60)
    assert (np.asarray(Image.open(io.BytesIO(data))) > 0)[8].any()  # ringing there is
    assert (images.decode_mask(data) != (mask > 0)).mean() < 0.02


def test_eight_bit_png_and_jpeg_are_stored_untouched_and_others_losslessly():
    rgb = colours(20, 30)
    for image, kind in ((rgb, "PNG"), (rgb[..., 0], "PNG"), (rgb, "JPEG"), (rgb[..., 0], "JPEG")):
        data = encoded(Image.fromarray(image), kind)
        assert images.storable(data) == (data, (20, 30))
    others = [encoded(Image.fromarray(rgb), kind) for kind in ("BMP", "TIFF")]
    others += [encoded(Image.fromarray(rgb).convert("RGBA")), encoded(Image.fromarray(rgb).quantize(16), "GIF")]
    for data in others:
        stored, size = images.storable(data)
        assert stored[:8] == b"\x89PNG\r\n\x1a\n" and size == (20, 30)
        np.testing.assert_array_equal(images.decode(stored), images.decode(data))


def test_damaged_png_data_is_noticed_without_decoding():
    data = bytearray(encoded(Image.fromarray(colours(40, 50))))
    data[len(data) // 2] ^= 1
    with pytest.raises(UserError, match="x.png is truncated or unreadable"):
        images.storable(bytes(data), "x.png")


def test_bilinear_shrinking_averages_as_a_triangle_filter_does():
    image = colours(24, 36)
    ours = images.resize_image(image, 12)
    for row, column in (
        (3, 5),
        (6, 7),
        (0, 11),
    ):  # oracle: triangle of half-width `scale`, normalised, clipped at borders

        def weights(target, source, place):
            scale = source / target
            offsets = np.abs(np.arange(source) + 0.5 - (place + 0.5) * scale) / scale
            w = np.maximum(1 - offsets, 0)
            return w / w.sum()

        expected = np.einsum("h,w,hwc->c", weights(12, 24, row), weights(12, 36, column), image.astype(float))
        assert np.abs(ours[row, column] - expected).max() <= 1


def test_short_crop_keeps_the_aspect_and_the_centre_as_torchvision():
    image = colours(30, 47)
    resized = np.asarray(Image.fromarray(image).resize((31, 20), Image.Resampling.BILINEAR))  # int(20 * 47 / 30) = 31
    np.testing.assert_array_equal(images.resize_image(image, 20, "short_crop", 16), resized[2:18, 8:24])
    np.testing.assert_array_equal(images.resize_image(image, 20, "short_crop"), resized[:, 6:26])
    np.testing.assert_array_equal(
        images.resize_image(image.transpose(1, 0, 2), 20, "short_crop", 16).shape, (16, 16, 3)
    )


def test_masks_follow_the_images_geometry():
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:30, 30:50] = 255
    for mode, crop in (("square", 0), ("short_crop", 0), ("short_crop", 16)):
        small = images.resize_image(image, 20, mode, crop)[..., 0] > 127
        np.testing.assert_array_equal(images.resize_mask(image[..., 0] > 0, 20, mode, crop), small)


def test_no_resize_leaves_the_array_alone_and_bad_settings_are_refused():
    image = colours()
    assert images.resize_image(image, 4, "none") is image
    with pytest.raises(UserError, match="must be one of square, short_crop, none"):
        images.resize_image(image, 4, "long")
    with pytest.raises(UserError, match="crop_size=8 is larger than"):
        images.resize_image(image, 4, "short_crop", 8)
