"""One process, several copies of OpenMP: ours, PyTorch's and scikit-learn's, in any order.

Times are not tested. Where more threads want to run than there are processors, fits of
scikit-learn's histogram boosting stall, with or without this package. With about four threads for
each of two processors, six fits of 20 iterations took 2 to 30 s without us, and six each 1.6 to
22 s and 1.2 to 9.5 s with us imported or called before. With OMP_WAIT_POLICY=passive there were no
stalls: twelve fits each took 0.3 to 0.8 s without us, and 0.1 to 0.9 s with us called before. So
the likely cause is that scikit-learn's own OpenMP spins while a thread that it waits for has no
processor; so few fits do not show that we have no part in it.
"""

import hashlib
import os
import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest

import reformer_c as rc

pytest.importorskip("torch")
pytest.importorskip("sklearn")

LIBRARIES = ("reformer_c", "torch", "sklearn.ensemble")
# ours after each of the others has used its threads, in a forked child, and in workers of joblib
PROGRAM = """
import hashlib, os, sys
import numpy as np

def ours(seed):
    import reformer_c as rc
    x = np.random.default_rng(seed).standard_normal((2, 4, 512, 32), np.float32)
    out, saved = rc.lsh_attention_forward(x, x, num_hashes=2, rng=1, workers=2)
    dqk, dv = rc.lsh_attention_backward(out, saved, workers=2)
    return hashlib.sha256(out.tobytes() + dqk.tobytes() + dv.tobytes()).hexdigest()

if __name__ == "__main__":
    for name in sys.argv[1:]:
        __import__(name)
    import torch
    from joblib import Parallel, delayed
    from sklearn.ensemble import HistGradientBoostingRegressor

    found = [ours(0)]
    product = torch.ones(600, 600) @ torch.ones(600, 600)
    found.append(ours(0))
    x = np.random.default_rng(0).standard_normal((2000, 4))
    HistGradientBoostingRegressor(max_iter=5).fit(x, x[:, 0])
    found.append(ours(0))
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, ours(0).encode())
        os._exit(0)
    os.wait()
    found.append(os.read(read, 1000).decode())
    found += Parallel(n_jobs=2, backend="loky")(delayed(ours)(0) for _ in range(2))
    found.append(ours(0))
    assert (product == 600).all()
    print(*found)
"""


def digest(workers):
    x = np.random.default_rng(0).standard_normal((2, 4, 512, 32), np.float32)
    out, saved = rc.lsh_attention_forward(x, x, num_hashes=2, rng=1, workers=workers)
    dqk, dv = rc.lsh_attention_backward(out, saved, workers=workers)
    return hashlib.sha256(out.tobytes() + dqk.tobytes() + dv.tobytes()).hexdigest()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("waiting", [None, "passive"])
@pytest.mark.parametrize("order", [*permutations(LIBRARIES)], ids="-".join)
def test_every_order_of_imports_gives_the_same_bits(tmp_path, order, waiting):
    # a file of its own: joblib's workers read the function from it
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | ({"OMP_WAIT_POLICY": waiting} if waiting else {})
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(program), *order],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [digest(1)] * 7
