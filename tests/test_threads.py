"""Threads, forks and Ctrl-C: always the same bits, and every call returns."""

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import numpy as np
import pytest
from tolerances import tolerance

import reformer_c as rc
from reformer_c import runtime

WAIT = 120  # seconds: only a call that hangs comes near it


def python(code, *arguments, **environment):
    """Run code in a Python of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True, text=True, timeout=WAIT, check=False,
        env={**{k: x for k, x in os.environ.items() if "NUM_THREADS" not in k}, **environment},
    )  # fmt: skip


def said(code, **environment):
    result = python(code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


# ---- how many ----


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = rc.get_num_threads()
    yield
    rc.set_num_threads(before)


def test_the_number_of_threads_is_set_for_the_process_or_for_a_block():
    rc.set_num_threads(3)
    assert rc.get_num_threads() == 3
    with rc.num_threads(1):
        assert rc.get_num_threads() == 1
        with rc.num_threads(2):
            assert rc.get_num_threads() == runtime.resolve_workers(None) == 2
            assert runtime.resolve_workers(5) == 5
        assert rc.get_num_threads() == 1
    assert rc.get_num_threads() == 3
    with pytest.raises(RuntimeError), rc.num_threads(1):
        raise RuntimeError
    assert rc.get_num_threads() == 3


def test_a_block_is_its_own_threads_alone():
    rc.set_num_threads(3)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result(WAIT)  # a thread that the block did not start
        with rc.num_threads(1):
            assert pool.submit(rc.get_num_threads).result(WAIT) == 3
            inherited = copy_context().run
            assert pool.submit(inherited, rc.get_num_threads).result(WAIT) == 1
            assert rc.get_num_threads() == 1


def test_negative_numbers_count_from_the_end():
    available = runtime._available
    rc.set_num_threads(-1)
    assert rc.get_num_threads() == available == runtime.resolve_workers(-1)
    assert runtime.resolve_workers(-available) == 1
    with pytest.raises(ValueError, match=r"^workers must not be less than"):
        runtime.resolve_workers(-available - 1)


@pytest.mark.parametrize("wrong", [0, -10_000, 1.5, "2", None, True])
def test_wrong_numbers_are_named(wrong):
    with pytest.raises((TypeError, ValueError), match=r"^n must "):
        rc.set_num_threads(wrong)
    with pytest.raises((TypeError, ValueError), match=r"^n must "), rc.num_threads(wrong):
        pass
    if wrong is not None:
        with pytest.raises((TypeError, ValueError), match=r"^workers must "):
            runtime.resolve_workers(wrong)


def test_absurd_numbers_start_no_absurd_threads():
    assert runtime.resolve_workers(10**30) == runtime._MAX_THREADS
    x = np.ones((300, 300))
    np.testing.assert_array_equal(rc.linear(x, x, workers=10**9), rc.linear(x, x, workers=1))


@pytest.mark.parametrize(("environment", "expected"), [
    (dict(REFORMER_C_NUM_THREADS="3", OMP_NUM_THREADS="5"), "3"),
    (dict(OMP_NUM_THREADS="5"), "5"),
    (dict(OMP_NUM_THREADS="4,2"), "4"),
    (dict(REFORMER_C_NUM_THREADS="", OMP_NUM_THREADS="2"), "2"),
    (dict(REFORMER_C_NUM_THREADS="none", OMP_NUM_THREADS="0"), str(runtime._available)),
    ({}, str(runtime._available)),
])  # fmt: skip
def test_the_environment_says_how_many(environment, expected):
    assert said("import reformer_c as rc; print(rc.get_num_threads())", **environment) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs processor affinity")
def test_the_default_keeps_to_the_processors_that_we_may_use():
    code = """
        import os
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        import reformer_c as rc
        print(rc.get_num_threads())
    """
    assert said(code) == "1"


needs_two = pytest.mark.skipif(
    runtime._available < 2 or not rc._core.openmp or not hasattr(os, "sched_getaffinity"),
    reason="needs two processors, OpenMP and processor affinity",
)
HOW_MANY = """
    import sys
    for name in sys.argv[1:]:
        __import__(name)
    import reformer_c as rc
    print(rc.get_num_threads())
    rc.set_num_threads(-1)
    print(rc.get_num_threads())
"""


def first_processors(n):
    return sorted(os.sched_getaffinity(0))[:n] if hasattr(os, "sched_getaffinity") else [0] * n


@needs_two
@pytest.mark.parametrize(("environment", "expected"), [
    (dict(OMP_PROC_BIND="true"), None),
    (dict(OMP_PROC_BIND="close"), None),
    (dict(OMP_PROC_BIND="spread"), None),
    (dict(OMP_PROC_BIND="false"), None),
    (dict(OMP_PLACES="threads"), None),
    (dict(OMP_PLACES="cores", OMP_PROC_BIND="true"), None),
    (dict(OMP_DYNAMIC="true"), None),
    (dict(OMP_PLACES=f"{{{first_processors(2)[-1]}}}"), 1),
    (dict(GOMP_CPU_AFFINITY="{} {}".format(*first_processors(2))), 2),
    (dict(GOMP_CPU_AFFINITY=str(first_processors(1)[0])), 1),
    (dict(OMP_THREAD_LIMIT="1"), 1),
])  # fmt: skip
def test_threads_that_openmp_binds_are_counted_by_its_places(environment, expected):
    """By then the main thread's own affinity is a single place."""
    expected = runtime._available if expected is None else expected
    alone = python(HOW_MANY, **environment)
    assert alone.stdout.split() == [str(expected)] * 2, alone.stderr


@needs_two
@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")
def test_so_are_they_where_torch_has_loaded_openmp_before():
    after = python(HOW_MANY, "torch", OMP_PROC_BIND="true")
    assert after.stdout.split() == [str(runtime._available)] * 2, after.stderr


@needs_two
def test_another_librarys_openmp_that_has_bound_the_thread_leaves_us_all_processors(tmp_path):
    maps = Path("/proc/self/maps").read_text()
    found = [line.split()[-1] for line in maps.splitlines() if "/libgomp" in line]
    if not found:
        pytest.skip("needs GNU OpenMP")
    # of another name, as wheels bring it, so that both are loaded
    other = tmp_path / "libgomp-0123.so.1"
    other.write_bytes(Path(found[0]).read_bytes().replace(b"libgomp.so.1", b"libgomq.so.1"))
    code = """
        import ctypes, os, sys
        ctypes.CDLL(sys.argv[1])
        bound = os.sched_getaffinity(0)
        import reformer_c as rc
        maps = open("/proc/self/maps").read()
        assert {line.split()[-1].rpartition("/")[2] for line in maps.splitlines()
                if "/libgomp" in line} > {"libgomp-0123.so.1"}
        assert os.sched_getaffinity(0) == bound and len(bound) == 1
        print(rc.get_num_threads(), len(rc._core.openmp_processors()))
    """
    result = python(code, str(other), OMP_PROC_BIND="true")
    assert result.stdout.split() == [str(runtime._available)] * 2, result.stderr


@needs_two
def test_a_binding_keeps_to_the_processors_that_the_process_was_given():
    code = """
        import os, subprocess, sys
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        code = "import reformer_c as rc; print(rc.get_num_threads())"
        print(subprocess.check_output([sys.executable, "-c", code], text=True))
    """
    assert said(code, OMP_PROC_BIND="true") == "1"


needs_threadpoolctl = pytest.mark.skipif(
    not importlib.util.find_spec("threadpoolctl") or not rc._core.openmp,
    reason="needs threadpoolctl and OpenMP",
)
LIMITED = """
    {first}
    {second}
    import threading
    import numpy as np

    def here():
        return rc.get_num_threads(), rc.runtime.resolve_workers(None)

    x = np.random.default_rng(0).standard_normal((2, 2, 300, 16))
    right = rc.full_attention(x, x, x)
    every = rc.get_num_threads()
    assert every == {default}
    with threadpool_limits(1):
        assert here() == (1, 1)
        assert (rc.full_attention(x, x, x) == right).all()
        assert rc.full_attention(x, x, x, workers=2).tobytes() == right.tobytes()
        with threadpool_limits({default}):
            assert here() == (every, every)
        assert here() == (1, 1)
    assert here() == (every, every)
    for api, expected in dict(openmp=1, blas=every).items():
        with threadpool_limits(1, user_api=api):
            assert here() == (expected, expected), api
    # a number set before the limit is bounded by it
    rc.set_num_threads(3)
    with threadpool_limits(1):
        assert here() == (1, 1)
    assert here() == (3, 3)
    with rc.num_threads(4), threadpool_limits(1):
        assert here() == (1, 1)
    # and a number set within it holds there
    with threadpool_limits(1):
        with rc.num_threads(2):
            assert here() == (2, 2)
        assert here() == (1, 1)
        # a limit is its thread's own: a pool's worker has none, or sets it itself
        seen = []
        def work():
            seen.append(here())
            with threadpool_limits(1):
                seen.append(here())
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert seen == [(3, 3), (1, 1)]
    print("ok")
"""
IMPORTS = ["from threadpoolctl import threadpool_limits", "import reformer_c as rc"]


@needs_threadpoolctl
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("environment", [{}, {"OMP_NUM_THREADS": "2"}, {"OMP_DYNAMIC": "true"}])
def test_limits_of_threadpoolctl_are_kept(order, environment):
    first, second = IMPORTS[::order]
    default = environment.get("OMP_NUM_THREADS", runtime._available)
    code = LIMITED.format(first=first, second=second, default=default)
    assert said(code, **environment) == "ok"


@needs_threadpoolctl
def test_an_import_within_a_limit_keeps_to_it_and_not_longer():
    code = """
        import ctypes, sys
        from threadpoolctl import threadpool_limits
        ctypes.CDLL(sys.argv[1])  # OpenMP alone, as another library loads it
        with threadpool_limits(1):
            import reformer_c as rc
            assert rc.get_num_threads() == 1
        print(rc.get_num_threads())
    """
    # this process may have other libraries' OpenMP as well
    own = """
        import reformer_c
        from threadpoolctl import threadpool_info
        print(next(x["filepath"] for x in threadpool_info() if x["user_api"] == "openmp"))
    """
    result = python(code, python(own).stdout.strip())
    assert result.stdout.strip() == str(runtime._available), result.stderr


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize(("own", "files", "expected"), [
    ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n"}, None),
    ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 2),
    ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
    ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
    ("0::/gone\n", {}, None),
    ("5:cpu,cpuacct:/x\n1:memory:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "400000\n",
                                         "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"}, 4),
    ("5:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, None),
    ("5:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "nonsense\n"}, None),
])  # fmt: skip
def test_a_control_groups_quota_is_kept_to(tmp_path, own, files, expected):
    write(tmp_path / "root", files)
    write(tmp_path, {"own": own})
    assert runtime._cgroup_quota(tmp_path / "root", tmp_path / "own") == expected
    assert runtime._cgroup_quota(tmp_path / "root", tmp_path / "nowhere") is None


def test_show_config_tells_and_prints(capsys):
    config = rc.show_config(mode="dicts")
    assert config["Package"]["reformer_c"] == rc.__version__
    assert rc.show_config() is None
    printed = capsys.readouterr().out
    for word in ["compiler", "OpenMP", "built", "in use", config["Instruction sets"]["in use"]]:
        assert word in printed
    with pytest.raises(ValueError, match="mode"):
        rc.show_config(mode="xml")


@pytest.mark.parametrize("name", rc._core.isas())
def test_the_environment_chooses_the_instruction_set(name):
    code = (
        "import reformer_c as rc; print(rc.show_config(mode='dicts')['Instruction sets']['in use'])"
    )
    assert said(code, REFORMER_C_ISA=name) == name


def test_an_unknown_instruction_set_is_an_error_that_lists_what_there_is():
    result = python("import reformer_c", REFORMER_C_ISA="mmx")
    assert result.returncode != 0
    last = result.stderr.strip().split("\n")[-1]
    assert "ImportError: REFORMER_C_ISA must be one of" in last
    assert "'base'" in last and "got 'mmx'" in last


def test_import_is_silent_and_takes_numpy_alone():
    code = """
        import sys
        import numpy
        before = set(sys.modules)
        import reformer_c
        new = {name.split(".")[0] for name in set(sys.modules) - before}
        print(sorted(new - sys.stdlib_module_names - {"reformer_c", "numpy"}))
    """
    result = python(code)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


# ---- many Python threads at once ----


def test_many_threads_may_use_every_name_first():
    code = """
        import sys, threading
        import reformer_c as rc
        modules = [*rc._LAZY.values(), *rc._LAZY_MODULES.values()]
        packages = {f"reformer_c.{path}".rpartition(".")[0] for path in modules}
        assert packages <= set(sys.modules), packages  # of which other threads import modules

        barrier, done = threading.Barrier(8), []
        def work(i):
            barrier.wait()
            for name in rc.__all__[i * 9:] + rc.__all__[:i * 9]:
                getattr(rc, name)
            done.append(i)
        threads = [threading.Thread(target=work, args=[i]) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(len(done))
    """
    assert said(code) == "8"


def draw(t=256, seed=0):
    return np.random.default_rng(seed).standard_normal((2, 2, t, 16)).astype("float32")


def attend(x, **options):
    return rc.lsh_attention(x, x, chunk_length=32, num_hashes=2, rng=1, **options)


def test_many_python_threads_at_once_get_the_same_as_one():
    inputs = [draw(seed=i) for i in range(8)]
    expected = [attend(x, workers=1) for x in inputs]
    wrong, start = [], threading.Barrier(8)

    def work(i):
        start.wait(WAIT)
        for _ in range(10):
            with rc.num_threads(1 + i % 3):
                if not np.array_equal(attend(inputs[i]), expected[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=[i]) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    assert wrong == []


def test_other_python_threads_run_during_a_call():
    """The call releases the GIL: another thread's loop runs during calls, not only between them."""
    during, inside, done = [0], threading.Event(), threading.Event()

    def count():
        while not done.is_set():
            during[0] += inside.is_set()

    counter = threading.Thread(target=count)
    counter.start()
    x = draw(4096)
    for _ in range(500):  # more than enough, but a scheduler gives no guarantee
        inside.set()
        rc.full_attention(x, x, x, workers=1)
        inside.clear()
        if during[0] > 1000:
            break
    done.set()
    counter.join(WAIT)
    assert during[0] > 1000


# ---- fork ----

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
allow_fork = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def wait_for(pid):
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hangs"


@needs_fork
@allow_fork
def test_a_child_of_a_fork_computes_after_its_parent_used_threads():
    x = draw()
    expected = attend(x, workers=4)
    pid = os.fork()
    if pid == 0:
        try:
            good = rc._core.forked() and rc.get_num_threads() == 1
            for workers in [None, 1, 4]:
                good = good and np.array_equal(attend(x, workers=workers), expected)
            os._exit(0 if good else 1)
        except BaseException:
            os._exit(2)
    assert wait_for(pid) == 0
    # and the parent goes on as before
    assert not rc._core.forked()
    np.testing.assert_array_equal(attend(x, workers=4), expected)


@needs_fork
@allow_fork
def test_a_grandchild_computes_too():
    x = draw()
    expected = attend(x, workers=2)
    pid = os.fork()
    if pid == 0:
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(0 if np.array_equal(attend(x, workers=2), expected) else 1)
        os._exit(0 if wait_for(grandchild) == 0 else 1)
    assert wait_for(pid) == 0


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing_computes_with_every_start_method(tmp_path, method):
    # a file of its own: spawn imports it again
    (tmp_path / "pool.py").write_text(
        textwrap.dedent("""
        import multiprocessing, sys
        import numpy as np
        import reformer_c as rc

        def attend(seed):
            x = np.random.default_rng(seed).standard_normal((2, 2, 256, 16))
            return rc.lsh_attention(x, x, chunk_length=32, rng=1, workers=4).sum()

        if __name__ == "__main__":
            if sys.argv[1] not in multiprocessing.get_all_start_methods():
                sys.exit(0)
            expected = [attend(seed) for seed in range(4)]
            with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
                assert pool.map(attend, range(4)) == expected
    """)
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(tmp_path / "pool.py"), method],
        capture_output=True, text=True, timeout=WAIT, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


# ---- Ctrl-C ----

LONG_CALL = """
    import sys, threading, time
    from dataclasses import replace
    import numpy as np
    import reformer_c as rc

    x = np.zeros((1, 4, 60_000, 64), np.float32)
    out = np.empty_like(x)
    small = np.ones((1, 1, 100, 16))
    right = rc.full_attention(small, small, small)
    few, none = np.ones((2, 16)), np.zeros(2)
    long = dict(chunk_length=1, num_chunks_before=100_000_000, wrap=True)

    def saved_of(options):
        saved = rc.local_attention_forward(few, few, few, **options | dict(num_chunks_before=1))[1]
        return saved._replace(
            spec=replace(saved.spec, num_chunks_before=options["num_chunks_before"])
        )

    def long_call():
        {call}

    print("ready", flush=True)
    started = time.monotonic()
    try:
        while True:  # a call long enough on any machine: one after the other
            long_call()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    # the process goes on, and so do its threads
    assert (rc.full_attention(small, small, small, workers=2) == right).all()
    print("works", flush=True)
"""
CALLS = {
    "attention": "rc.full_attention(x, x, x, out=out)",
    "serial attention": "rc.full_attention(x, x, x, out=out, workers=1)",
    "hashing": "rc.lsh_hash(x, num_hashes=64, num_buckets=512, rng=0)",
    "feed-forward": "rc.feed_forward(x, np.zeros((4096, 64), 'f4'), np.zeros(4096, 'f4'),"
    " np.zeros((64, 4096), 'f4'), np.zeros(64, 'f4'))",
    "linear": "rc.linear(x, np.zeros((4096, 64), 'f4'))",
    # of which one block of queries takes a minute
    "a long window": "rc.local_attention(few, few, few, **long)",
    "a long window's backward": "rc.local_attention_backward(few, saved_of(long))",
    "a long window of hidden keys": "rc.local_attention(few, few, few, attention_mask=none,"
    " **long)",
    "a long window of hashes": "rc.lsh_attention(few, few, allow_duplicate_attention=False,"
    " **long)",
}


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_stops_a_call_and_the_process_goes_on(name):
    code = textwrap.dedent(LONG_CALL).format(call=CALLS[name])
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.5)  # well into the call
            process.send_signal(signal.SIGINT)
            sent = time.monotonic()
            assert process.stdout.readline() == "interrupted\n"
            seconds = time.monotonic() - sent
            # not communicate(): this file's buffer may hold output that followed the last line
            out, err = process.stdout.read(), process.stderr.read()
        finally:
            process.kill()
    assert out == "works\n", err
    assert seconds < 20  # about a tenth of one on an idle machine


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_ctrl_c_releases_what_the_call_held():
    """Memory after many interrupted calls is what it was."""
    code = """
        import _thread, gc, sys, threading, tracemalloc
        import numpy as np
        import reformer_c as rc

        x = np.zeros((1, 1, 20_000, 64), np.float32)
        mask = np.ones((1, 20_000), np.int32)

        def interrupted():
            timer = threading.Timer(0.15, _thread.interrupt_main)
            timer.start()
            try:
                while True:
                    rc.full_attention(x, x[:, :, ::-1], x, attention_mask=mask)
            except KeyboardInterrupt:
                pass
            timer.join()

        interrupted()
        tracemalloc.start()
        interrupted()
        gc.collect()
        before, references = tracemalloc.get_traced_memory()[0], sys.getrefcount(x)
        for _ in range(5):
            interrupted()
        gc.collect()
        assert sys.getrefcount(x) == references
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
        print("ok")
    """
    assert said(code) == "ok"


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_a_signal_handler_runs_during_a_call_and_may_compute_itself(precision):
    # with AMX, the handler's products configure and release the tiles of the interrupted call
    code = f"""
        import signal, sys
        import numpy as np
        import reformer_c as rc

        rc.set_matmul_precision("{precision}")
        x = np.ones((1, 4, 6_000, 64), np.float32)
        small = np.ones((1, 1, 100, 16), np.float32)
        right = rc.full_attention(small, small, small)
        handled = []

        def handler(number, frame):
            handled.append((rc.full_attention(small, small, small, workers=4) == right).all())

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        while len(handled) < 3:
            result = rc.full_attention(x, x, x)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert all(handled)
        assert abs(result - 1).max() < {tolerance("forward", "float32")}
        print("ok")
    """
    assert said(code) == "ok"


def test_control_groups_told_in_another_form_are_no_limit(tmp_path):
    own = tmp_path / "own"
    own.write_text("nonsense\n\n0:\n0::/\n")
    for name, text in {
        "memory.max": "1000\n", "memory.current": "10\n", "memory.stat": "inactive_file\nanon 3\n",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    assert runtime._cgroup_quota(tmp_path, own) is None
    assert list(runtime._cgroup_memory(tmp_path, own)) == [(1000, 10)]
