"""Reading and writing checkpoints, safely."""
