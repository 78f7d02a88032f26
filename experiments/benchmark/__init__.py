"""Speed and memory, beside diffusers' and by themselves."""

import sys

if sys.argv[:1] == ["-m"] and {"--help", "-h"} & {*sys.argv}:  # as in experiments/__init__.py: before torch is imported
    from experiments.benchmark.options import PROGRAMS

    if program := PROGRAMS.get(sys.orig_argv[-len(sys.argv)].removeprefix("-m")):
        program().parse_args(["--help"])
