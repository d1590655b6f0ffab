"""The initial weights that the paper's networks share."""

from torch import nn


def kaiming_(model: nn.Module) -> None:
    """W ~ N(0, 2/n) for every Linear and Conv2d layer of `model`, n the length of a row (fan_in); in place.

    He et al., ICCV 2015, as the default of Price & Tanner's code (`--init normal_kaiming`). The biases keep
    torch's initialisation, there as here.
    """
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
