"""What all loaders of Hugging Face models share: what is refused, in one line.

Code that comes with a model is never run, nor asked for, and no weights are read from a pickle,
which can run code too. So `from_pretrained` always gets trust_remote_code=False, and for a model
use_safetensors=True (tests/test_loading.py looks).
"""

import os
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


def looks_like_path(name):
    """Whether a name is meant as a path, not as a Hugging Face id."""
    name = str(name)
    return (name.startswith((".", "/", "~")) or name.endswith(("/", os.sep))
            or Path(name.split("/")[0]).exists())


@contextmanager
def refuse_bad_model(flag, name, mend):
    """What transformers raises on a model that is missing, damaged or unsafe becomes a SystemExit.

    A mistyped path is refused first: the hub is not asked for it.
    """
    try:
        if looks_like_path(name) and not Path(name).is_dir():
            raise ValueError("there is no such folder.")
        yield
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        if "custom code" in reason:
            reason = "it needs code that comes with it, which is never run."
        elif "file named model.safetensors" in reason:
            reason = "it has no *.safetensors, and pickles (pytorch_model.bin) are not read."
        raise SystemExit(f"{flag} {name} cannot be loaded: {reason} {mend}") from None
