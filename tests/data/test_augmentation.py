import pytest
import torch

from finetune.data.augmentation import mix
from finetune.errors import RecipeError

PIXELS = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_nothing_is_mixed_unless_planned():
    mixed, share = mix(PIXELS, "none", (0, 1))
    assert torch.equal(mixed, PIXELS)
    assert share == 1.0


def test_an_image_alone_is_not_mixed():
    assert mix(PIXELS[:1], "mixup", (0, 1))[1] == 1.0


def test_mixup_is_the_weighted_mean_of_each_image_and_the_one_before_it():
    mixed, share = mix(PIXELS, "mixup", (0, 1))
    expected = share * PIXELS.float() + (1 - share) * PIXELS.roll(1, 0).float()
    assert mixed.dtype == torch.uint8
    torch.testing.assert_close(mixed.float(), expected, rtol=0, atol=0.5001)


@pytest.mark.parametrize("step", range(8))
def test_cutmix_takes_a_box_from_the_image_before_it_and_counts_its_area(step):
    mixed, share = mix(PIXELS, "cutmix", (0, step))
    others = PIXELS.roll(1, 0)
    assert bool(((mixed == PIXELS) | (mixed == others)).all())
    from_other = (mixed != PIXELS).any(dim=0).any(dim=0).float().mean()
    assert float(from_other) == pytest.approx(1 - share, abs=1 / 16)


def test_the_seed_and_the_step_decide():
    assert torch.equal(mix(PIXELS, "mixup", (3, 5))[0], mix(PIXELS, "mixup", (3, 5))[0])
    assert mix(PIXELS, "mixup", (3, 5))[1] != mix(PIXELS, "mixup", (3, 6))[1]


def test_the_share_of_cutmix_is_uniform_before_boxes_are_cut_at_the_edge_and_that_of_mixup_is_extreme():
    shares = {kind: torch.tensor([mix(PIXELS, kind, (1, n))[1] for n in range(400)]) for kind in ("mixup", "cutmix")}
    far = {kind: float(((own < 0.1) | (own > 0.9)).float().mean()) for kind, own in shares.items()}
    assert far["mixup"] > 0.55 > far["cutmix"]


def test_activations_keep_their_arithmetic():
    maps = torch.randn(4, 8, 4, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    for kind in ("mixup", "cutmix"):
        assert mix(maps, kind, (0, 1))[0].dtype == torch.bfloat16


def test_boxes_are_not_cut_out_of_tokens():
    tokens = torch.randn(4, 10, 8)
    assert mix(tokens, "mixup", (0, 1))[0].shape == tokens.shape
    with pytest.raises(RecipeError, match="activations are tokens; mix by mixup instead"):
        mix(tokens, "cutmix", (0, 1))
