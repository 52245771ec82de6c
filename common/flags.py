"""Flags that all scripts spell alike, and the ranges of numbers."""

import argparse
import sys
from pathlib import Path

from common.process import resolve_device

SEEDS = (0, 2**31 - 1)  # scikit-learn and gensim take 32 bits, and some add to it


def add_shared(parser, *names):
    """Add those of --data-dir, --device, --seed and --resume that are named, without dashes."""
    if "data-dir" in names:
        parser.add_argument("--data-dir", type=Path, default=Path("data/demo"),
                            help="folder of the data (default data/demo)")
    if "device" in names:
        parser.add_argument("--device", type=resolve_device, default="auto",
                            help="auto (default: cuda if there is one), cpu, cuda, ...")
    if "seed" in names:
        parser.add_argument("--seed", type=int, default=0, help="of every draw (default 0)")
    if "resume" in names:
        parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                            help="skip what is finished, go on with what is half done (default); "
                                 "--no-resume starts afresh")


def check_ranges(args, **ranges):
    """Check the numbers among a script's arguments, and --seed in every script; None is accepted.

    ranges: {name of an argument: the least value that is accepted, or (least, largest)}.
    Raises SystemExit: a number is out of its range, infinite or NaN.
    """
    for name, accepted in {"seed": SEEDS, **ranges}.items():
        given = getattr(args, name, None)
        least, largest = accepted if isinstance(accepted, tuple) else (accepted, sys.float_info.max)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not least <= value <= largest:
                words = f"{least:.10g} or more is"
                if isinstance(accepted, tuple):
                    words = f"{least:.10g} to {largest:.10g} is"
                flag = f"--{name.replace('_', '-')} {value}".removesuffix(".0")
                raise SystemExit(f"{flag}: {words} accepted")
