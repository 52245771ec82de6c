"""What the worker processes that read audio files do (01, annotate/, baselines/clap.py)."""

import multiprocessing
import os
import threading

from threadpoolctl import threadpool_limits


def start_worker():
    """What an audio worker does first: it dies with its parent, even one killed by force, and uses one thread."""
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
    threadpool_limits(1)


def try_read(read, path):
    """(what `read` makes of an audio file, None), or (None, the reason why not)."""
    try:
        return read(path), None
    except ValueError as error:
        return None, str(error)
