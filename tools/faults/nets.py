"""Networks for the campaign: one of milliseconds a step, and its kin that end their process while they train."""

from __future__ import annotations

import os
import resource
import signal
import time

import torch
from torch import Tensor, nn

_CALLS_BEFORE = 40  # training forwards that go well
_ROOM_BYTES = 2**28  # that the memory eater leaves itself


class SmallNet(nn.Module):
    """Two convolutions with batch-norm, dropout (from torch's global generator), one linear layer."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        """Build for images of any size."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float32 to (N, classes)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.fc(self.dropout(x.mean((2, 3))))
        return logits


class _EndingNet(SmallNet):
    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__(num_classes, in_channels)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls > _CALLS_BEFORE:
            self.end()
        return super().forward(x)

    def end(self) -> None:
        raise AssertionError(f"{type(self).__name__} has to say how it ends")


class Segfault(_EndingNet):
    """Ends with the signal of a wrong memory access."""

    def end(self) -> None:
        """End."""
        os.kill(os.getpid(), signal.SIGSEGV)


class Killed(_EndingNet):
    """Ends as the kernel or an operator ends a process."""

    def end(self) -> None:
        """End."""
        os.kill(os.getpid(), signal.SIGKILL)


class Hang(_EndingNet):
    """Comes to no end."""

    def end(self) -> None:
        """Wait."""
        time.sleep(3600)


class EatMemory(_EndingNet):
    """Takes more memory than the limit that it sets its own process."""

    def end(self) -> None:
        """Lower the limit of the address space to a little more than is in use, and go over it."""
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            in_use = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (in_use + _ROOM_BYTES, resource.RLIM_INFINITY))
        torch.ones(_ROOM_BYTES)  # four bytes each


class Diverge(_EndingNet):
    """Leaves the finite numbers."""

    def end(self) -> None:
        """Make every output infinite."""
        with torch.no_grad():
            self.fc.bias.fill_(float("inf"))
