"""Initial weights that all networks here share.

Source: He et al., Delving Deep into Rectifiers, arXiv 1502.01852, section 2.2 (backward case, fan out).
"""

from __future__ import annotations

from torch import nn


def init_weights(model: nn.Module) -> None:
    """Draw convolutions by He's rule (fan out) in place; linear layers and batch-norms keep torch's defaults."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
