"""Gives child processes of tests the profile their parent has (see ``profiles.py``)."""

import importlib.util
import os
from pathlib import Path

if os.environ.get("WORKBENCH_PROFILE"):
    spec = importlib.util.spec_from_file_location("profiles", Path(__file__).with_name("profiles.py"))
    profiles = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(profiles)
    profiles.apply(os.environ["WORKBENCH_PROFILE"])
