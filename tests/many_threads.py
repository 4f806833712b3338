"""Work that many Python threads do at once."""

import threading

THREADS, WAIT = 8, 300


def at_once(work):
    """Call work(0), work(1), ... in as many threads, which begin together; raise their errors."""
    barrier, errors = threading.Barrier(THREADS), []

    def run(i):
        try:
            barrier.wait(WAIT)
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[i], daemon=True) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
