"""Patches of images and spectrograms, and the images of the digits."""

import pytest
import torch
from torch.testing import assert_close

from famx.data.digit_images import DigitImages
from famx.notation import UserError
from famx.registry import build


def test_patches_are_those_of_a_convolution():
    frontend = build("frontend", {"name": "patches", "width": 9, "channels": 3}, d_model=6)
    with torch.no_grad():
        frontend.embed.column += torch.randn(5, 6)
    images = torch.randn(2, 7, 9, 3)
    x, lengths = frontend(images, torch.tensor([7, 7]))
    # (d, rows, columns, channels) -> the layout of torch's convolutions
    weight = frontend.embed.weight.unflatten(1, (2, 2, 3)).permute(0, 3, 1, 2)
    padded = torch.nn.functional.pad(images.permute(0, 3, 1, 2), (0, 1, 0, 1))
    expected = torch.nn.functional.conv2d(padded, weight, frontend.embed.bias, stride=2)
    expected = expected + frontend.embed.column.T[None, :, None]
    assert lengths.tolist() == [20, 20]
    assert_close(x, expected.flatten(2).mT, atol=1e-5, rtol=1e-5)


def test_images_of_different_heights_share_a_batch():
    frontend = build("frontend", {"name": "patches", "patch": 4}, d_model=6)
    images = torch.randn(2, 12, 8, 1)
    x, lengths = frontend(images, torch.tensor([12, 6]))
    alone, _ = frontend(images[1:, :6], torch.tensor([6]))
    assert lengths.tolist() == [6, 4]
    assert_close(x[1, :4], alone[0])


def test_columns_of_axial_are_those_of_the_patches():
    # two places of one row, and two of one column, of an image of 4 x 4 patches
    rotary = build("rotary", {"name": "axial", "width": 4}, head_dim=8)
    x = torch.randn(1, 1, 1, 8)
    same_row = rotary(x.expand(1, 1, 16, 8))[0, 0]
    assert_close(same_row[4, :4], same_row[7, :4])
    assert_close(same_row[1, 4:], same_row[13, 4:])
    assert not torch.allclose(same_row[4, 4:], same_row[7, 4:])


def test_a_spectrogram_has_a_patch_for_each_place_in_time_and_mel():
    options = {"name": "mel_patches", "n_mels": 20, "patch_time": 4, "patch_mels": 8}
    frontend = build("frontend", options, d_model=6)
    # 10 windows of 25 ms, 10 ms apart
    signal = torch.randn(1, 400 + 9 * 160)
    x, lengths = frontend(signal, torch.tensor([signal.shape[1]]))
    spectrogram, _ = frontend.spectrogram(signal, torch.tensor([signal.shape[1]]), None)
    second = torch.zeros(4, 8)
    second[:, :4] = spectrogram[0, :4, 16:]
    assert lengths.item() == 3 * 3 and x.shape == (1, 9, 6)
    weight = frontend.embed.weight
    assert_close(x[0, 2], weight @ second.flatten() + frontend.embed.bias, atol=1e-5, rtol=1e-4)


def test_digits_are_divided_once_for_all_runs(tmp_path):
    options = DigitImages.example(tmp_path)
    ids = []
    for split in DigitImages.splits:
        dataset = DigitImages(split, **options)
        ids += dataset.ids
        assert dataset.ids == DigitImages(split, **options).ids
    assert len(ids) == len(set(ids)) == 20


def test_digits_of_scikit_learn_are_read():
    pytest.importorskip("sklearn", reason="scikit-learn contains the images")
    sizes = [len(DigitImages(split)) for split in DigitImages.splits]
    assert sum(sizes) == 1797
    dataset = DigitImages("train")
    assert sorted(set(dataset.texts)) == [str(digit) for digit in range(10)]
    assert dataset[0].signal.shape == (8, 8, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,2\n", "has 2 columns, not 65"),
        (",".join(["17"] * 65), "has pixels outside of 0 to 16"),
        ("a,b\n", "cannot be read"),
        ("", "has 0 columns|has 1 columns|too few"),
    ],
)
def test_a_file_of_other_content_is_refused(content, message, tmp_path):
    (tmp_path / "digits.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        DigitImages("train", path=str(tmp_path / "digits.csv"))


def test_patches_wider_than_the_spectrogram_are_refused():
    with pytest.raises(UserError, match="patch_mels=64 must be at most n_mels=8"):
        build("frontend", {"name": "mel_patches", "n_mels": 8}, d_model=6)
    with pytest.raises(UserError, match="each must be at least 1"):
        build("frontend", {"name": "patches", "patch": 0}, d_model=6)
