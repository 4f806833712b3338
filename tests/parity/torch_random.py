"""torch's CPU random numbers without torch: the Mersenne twister, and its two ways of filling.

PyTorch: aten/src/ATen/native/cpu/DistributionTemplates.h, and c10's mt19937 and uniform_real.
"""

import numpy as np


class TorchGenerator:
    """torch.manual_seed(seed), and float32 draws in the order of torch's calls."""

    def __init__(self, seed: int) -> None:
        self._twister = np.random.MT19937()
        # the initialisation of the original, by one number of 32 bits
        self._twister._legacy_seeding(seed)

    def uniform(self, shape, low=0.0, high=1.0):
        """torch.Tensor.uniform_: 24 bits of each word."""
        words = self._twister.random_raw(int(np.prod(shape)))
        x = (words & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24)
        return (x * np.float32(high - low) + np.float32(low)).reshape(shape)

    def normal(self, shape, std=1.0):
        """torch.Tensor.normal_ of at least 16 numbers: Box and Muller's, 8 pairs at a time."""
        x = self.uniform(int(np.prod(shape)))
        whole = len(x) // 16 * 16
        assert whole > 0
        x[:whole] = self._pairs(x[:whole])
        if whole < len(x):
            # the last 16 are drawn anew, over some that are there
            x[-16:] = self._pairs(self.uniform(16))
        return np.float32(std) * x.reshape(shape)

    @staticmethod
    def _pairs(x):
        first, second = x.reshape(-1, 2, 8).swapaxes(0, 1)
        radius = np.sqrt(-2 * np.log(1 - first))
        angle = np.float32(2 * np.pi) * second
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
