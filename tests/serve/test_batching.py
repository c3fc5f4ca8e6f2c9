import threading
from contextlib import contextmanager

import numpy as np
import pytest

from finetune.serve.batching import Batcher, Full


class Echo:
    """A model whose images are numbers, and which waits in each forward pass until it may continue."""

    class_names = ("a", "b")

    def __init__(self):
        self.batches = []
        self.may_continue = threading.Event()
        self.began = threading.Event()

    @contextmanager
    def predictions(self):
        yield self.predict

    def predict(self, images):
        self.batches.append(list(images))
        self.began.set()
        assert self.may_continue.wait(10)
        if 13 in images:
            raise RuntimeError("13 is not an image")
        return np.array([[image, -image] for image in images], dtype=float)


@pytest.fixture
def model():
    return Echo()


def started(model, batcher, image=0):
    """Submit an image, and wait until its forward pass has begun."""
    (future,) = batcher.submit([image])
    assert model.began.wait(10)
    return future


def test_images_that_arrive_during_a_forward_pass_are_predicted_together_by_the_next(model):
    with Batcher(model) as batcher:
        first = started(model, batcher)
        others = [future for number in range(1, 9) for future in batcher.submit([number])]
        model.may_continue.set()
        assert [future.result(10)[0] for future in [first, *others]] == [*range(9)]
    assert model.batches == [[0], [*range(1, 9)]]


def test_a_forward_pass_has_at_most_the_given_number_of_images(model):
    model.may_continue.set()
    with Batcher(model, most_together=3) as batcher:
        futures = batcher.submit([*range(1, 9)])
        assert [future.result(10)[1] for future in futures] == [-number for number in range(1, 9)]
    assert [len(batch) for batch in model.batches] == [3, 3, 2]


def test_an_image_that_the_network_fails_on_fails_alone(model):
    model.may_continue.set()
    with Batcher(model) as batcher:
        good, bad, last = batcher.submit([1, 13, 2])
        assert (good.result(10)[0], last.result(10)[0]) == (1, 2)
        with pytest.raises(RuntimeError, match="13 is not an image"):
            bad.result(10)


def test_images_beyond_the_limit_find_no_place_until_others_are_answered(model):
    with Batcher(model, most_waiting=3) as batcher:
        with batcher.places(2):
            assert batcher.num_taken == 2
            with pytest.raises(Full), batcher.places(2):
                pass
            with batcher.places(1):
                pass
        with batcher.places(3):
            assert batcher.num_taken == 3
    assert batcher.num_taken == 0


def test_closing_answers_what_waits(model):
    with Batcher(model) as batcher:
        first = started(model, batcher)
        waiting = batcher.submit([1, 2])
        threading.Timer(0.05, model.may_continue.set).start()
    assert [future.result(0)[0] for future in [first, *waiting]] == [0, 1, 2]


def test_a_request_that_was_given_up_is_not_predicted(model):
    with Batcher(model) as batcher:
        started(model, batcher)
        given_up, kept = batcher.submit([1, 2])
        assert given_up.cancel()
        model.may_continue.set()
        assert kept.result(10)[0] == 2
    assert model.batches == [[0], [2]]


def test_a_model_that_cannot_predict_is_reported_at_the_start(model):
    @contextmanager
    def predictions():
        raise ValueError("no memory")
        yield

    model.predictions = predictions
    with pytest.raises(ValueError, match="no memory"), Batcher(model):
        pass
