"""Without torch and transformers, what needs them is not even imported."""

from importlib.util import find_spec

HAVE_LIVE = find_spec("torch") is not None and find_spec("transformers") is not None
collect_ignore = [] if HAVE_LIVE else ["live.py", "make_fixtures.py"]
