from types import SimpleNamespace

import numpy as np
import pytest

from finetune.training.state import collect


def fold(held_out):
    return SimpleNamespace(held_out=np.array(held_out))


@pytest.mark.parametrize("ended", [(True, True), (True, False), (False, False)])
def test_the_probes_of_folds_are_merged_once_all_of_them_have_ended(ended):
    material = SimpleNamespace(labels=np.array([0, 1, 1, 0]))
    logits = [np.array([[3.0], [0.0]]), np.array([[1.0], [2.0]])]
    parts = zip([fold([3, 0]), fold([1, 2])], logits, ended, strict=True)
    found = collect(material, [(phase, own, own + 10 if is_over else None) for phase, own, is_over in parts])
    assert found.logits.ravel().tolist() == [0.0, 1.0, 2.0, 3.0]
    assert found.labels.tolist() == [0, 1, 1, 0]
    assert (found.probe is None) == (not all(ended))
    if all(ended):
        assert found.probe.ravel().tolist() == [10.0, 11.0, 12.0, 13.0]
