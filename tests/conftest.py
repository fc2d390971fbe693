"""Shared by all tests: one thread (so that timings and sums do not depend on the machine), no network,
no global seed.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
import threading
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="workbench-tests-")  # the user's own settings stay as they are
atexit.register(shutil.rmtree, os.environ["XDG_CONFIG_HOME"], ignore_errors=True)

# A shell that starts the tests in the background has them ignore Ctrl-C, and children inherit that: tests that send it
# need it heard.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

if profile := os.environ.get("WORKBENCH_PROFILE"):  # play another system, in child processes too
    from tests.portable import profiles

    here = Path(__file__).parent
    paths = [str(here / "portable"), str(here.parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    profiles.apply(profile)
