import threading

import numpy as np
import pytest
from PIL import Image

import finetune
from finetune.runs.folder import RunFolder
from tests.publish.hub import Hub


@pytest.fixture
def hub():
    """A hub that answers on this machine until the test ends."""
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def finished_run(weights, tmp_path_factory):
    """The folder of a finished run with a test split, from weights in a file."""
    root = tmp_path_factory.mktemp("published")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 5)):
        for name, colour in (("a", 60), ("b|<img>", 180)):
            folder = root / "secret" / "imgs" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = generator.integers(-50, 50, (32, 40, 3))
                Image.fromarray((colour + noise).astype(np.uint8)).save(folder / f"{number}.png")
    recipe = finetune.Recipe(
        data=str(root / "secret" / "imgs"),
        model="test_efficientnet",
        weights=str(weights),
        strategy="linear_probe",
        image_size=32,
    )
    finetune.run(recipe, root / "run")
    return RunFolder(root / "run")
