import pytest

from finetune.decide.preprocessing import Preprocessing, choose_image_size


@pytest.mark.parametrize(("crop", "side"), [(0.875, 256), (1.0, 224), (0.9, 248)])
def test_the_shorter_side_is_the_square_over_the_crop(crop, side):
    values = {"interpolation": "bicubic", "mean": (0, 0, 0), "std": (1, 1, 1)}
    assert Preprocessing(image_size=224, crop_fraction=crop, **values).shorter_side == side


@pytest.mark.parametrize(("side", "smaller"), [(224, 160), (160, 128), (128, 96), (96, 96), (32, 32)])
def test_smaller_images_have_about_three_quarters_of_the_side_but_not_less_than_96_pixels(side, smaller):
    values = {"crop_fraction": 0.875, "interpolation": "bicubic", "mean": (0, 0, 0), "std": (1, 1, 1)}
    assert Preprocessing(image_size=side, **values).smaller() == Preprocessing(image_size=smaller, **values)


@pytest.mark.parametrize("native", [32, 150, 2000])
def test_a_network_for_small_images_keeps_its_size(native):
    assert choose_image_size(native, 160, has_accelerator=True)[0] == 160


@pytest.mark.parametrize("native", [185, 300, 4000])
def test_a_cpu_sees_no_more_than_160_pixels(native):
    assert choose_image_size(native, 224, has_accelerator=False)[0] == 160


def test_a_cpu_takes_a_step_less_where_the_images_are_hardly_larger():
    assert choose_image_size(183, 224, has_accelerator=False)[0] == 128


def test_small_images_are_enlarged_so_far_that_the_last_stage_is_not_starved():
    size, reason = choose_image_size(32, 224, has_accelerator=False)
    assert size == 128
    assert "starve" in reason


@pytest.mark.parametrize(("native", "size"), [(32, 128), (100, 128), (130, 192), (150, 224), (4000, 224)])
def test_an_accelerator_grows_with_the_images_up_to_the_networks_size(native, size):
    assert choose_image_size(native, 224, has_accelerator=True)[0] == size


@pytest.mark.parametrize("has_accelerator", [True, False])
@pytest.mark.parametrize("network", [160, 176, 224, 288, 384])
@pytest.mark.parametrize("native", [16, 90, 200, 500])
def test_the_size_is_never_larger_than_the_networks_and_the_reason_names_it(native, network, has_accelerator):
    size, reason = choose_image_size(native, network, has_accelerator)
    assert 128 <= size <= network
    assert reason.startswith(f"{size} px")
