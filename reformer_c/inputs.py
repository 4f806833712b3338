"""What a model is called with: checked, named where it is wrong, and padded where it matters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .config import ReformerConfig

__all__ = ["IGNORE", "Inputs", "check_ids", "check_inputs", "check_mask"]

# a label that does not count
IGNORE = -100


