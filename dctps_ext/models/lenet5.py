"""LeNet-5 as in the paper's experiments: plain torch, 61,510 weights for three channels and ten classes."""

from torch import Tensor, nn


class LeNet5(nn.Module):
    """Convolutions in-6-16-120, 5x5, average pooling, linear layers 120-82-classes; ReLU; no biases.

    Source: Price & Tanner, ICML 2021, section 4 and their code (github.com/IlanPrice/DCTpS, `LeNet`). The
    hidden width is 82, not LeCun's 84, and ReLU follows each of the first four layers (LeCun et al. 1998 had
    tanh): both are the paper's code's, so that its accuracies can be compared. Weights have torch's default
    initialisation.

    Shape: input (N, in_channels, H, W) or (in_channels, H, W), H and W at least 32; output (N, num_classes)
    or (num_classes), logits. At 32x32 the third convolution leaves one pixel; of more, as for Tiny ImageNet's
    64x64, the mean is taken, so that the weights are the same.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5, bias=False)
        self.conv2 = nn.Conv2d(6, 16, 5, bias=False)
        self.conv3 = nn.Conv2d(16, 120, 5, bias=False)
        self.fc1 = nn.Linear(120, 82, bias=False)
        self.fc2 = nn.Linear(82, num_classes, bias=False)
        self.pool = nn.AvgPool2d(2)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))  # 6 x 14 x 14
        x = self.pool(self.relu(self.conv2(x)))  # 16 x 5 x 5
        x = self.relu(self.conv3(x)).mean((-2, -1))  # 120
        return self.fc2(self.relu(self.fc1(x)))


def lenet5(num_classes: int = 10, in_channels: int = 3) -> LeNet5:
    """A `LeNet5`; `in_channels` is 3 in the paper (CIFAR), 1 for digits."""
    return LeNet5(num_classes, in_channels)
