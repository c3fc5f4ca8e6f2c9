import csv

import pytest

from finetune.export import images
from finetune.predict.model import Ensemble, TrainedModel
from finetune.runs.folder import Averaged
from finetune.runs.model_files import write_network


@pytest.fixture(scope="session")
def trained(small_network, small_plan):
    """The factory of a model that was not trained, with squares of 32 px and changes of its preprocessing."""

    def make(name="test_resnet", temperature=0.5, flips=False, **preprocessing):
        plan = small_plan(name, test_time_flips=flips)
        plan = plan.changed(preprocessing=plan.preprocessing.changed(**{"crop_fraction": 0.875, **preprocessing}))
        return TrainedModel(
            network=small_network(name), plan=plan, class_names=("a", "b", "ü"), temperature=temperature
        )

    return make


@pytest.fixture
def few_images(monkeypatch):
    """Exported models are compared on 30 images instead of 200."""
    monkeypatch.setattr(images, "LEAST_IMAGES", 30)
    monkeypatch.setattr(images, "DERIVED_SHAPES", 24)


@pytest.fixture(scope="session")
def averaged(trained):
    """The factory of an ensemble of two networks that resize in different ways."""

    def make():
        members = (
            trained("test_resnet", flips=True),
            trained("test_efficientnet", temperature=1.5, image_size=64, interpolation="bilinear"),
        )
        return Ensemble(members=members, plan=members[0].plan, class_names=members[0].class_names, temperature=0.7)

    return make


@pytest.fixture(scope="session")
def write_run():
    """The function that writes a model into a run folder, with the paths of its test images."""

    def write(model, folder, images=()):
        members = model.members if isinstance(model, Ensemble) else (model,)
        names = [f"members/{number}" for number in range(1, len(members) + 1)]
        places = [folder / name for name in names] if len(members) > 1 else [folder]
        for member, place in zip(members, places, strict=True):
            place.mkdir(parents=True, exist_ok=True)
            member.plan.save(place / "plan.json")
            write_network(member, place)
        if len(members) > 1:
            Averaged(members=names, temperature=model.temperature).save(folder / "ensemble.json")
        with (folder / "splits.csv").open("w", encoding="utf-8", newline="") as file:
            rows = [["path", "label", "split", "held_out_by"], *([str(path), "a", "test", ""] for path in images)]
            csv.writer(file).writerows(rows)
        return folder

    return write
