"""Make a network compute faster on CPUs. This is the only package that patches functions of PyTorch.

Inside a context of this package, the layers' calls of `conv2d` and `batch_norm` are computed in another way, with the
same result up to rounding. Outside, PyTorch is unchanged. Other packages import these names only:

* `quick_gradients`: a context for forward passes that are differentiated (`convolutions`).
* `FoldedNorms`: a context in which frozen batch norms are computed by the convolutions below them (`folding`).
* `ThreadTeam`: a team of threads, each computing its own part of the work (`threads`).

`interception` is the mechanism that both contexts use.
"""

from finetune.network.cpu.convolutions import quick_gradients
from finetune.network.cpu.folding import FoldedNorms
from finetune.network.cpu.threads import ThreadTeam

__all__ = ["FoldedNorms", "ThreadTeam", "quick_gradients"]
