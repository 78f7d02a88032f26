"""Everything around the networks: verbs, run by `python -m experiments.VERB`, and the rooms that they use."""

import sys

# Python sets argv[0] to "-m" while it looks for the module to run. So `--help` is answered here in a fraction of a
# second, before the verb is found and with it torch imported, which takes several.
if sys.argv[:1] == ["-m"] and {"--help", "-h"} & {*sys.argv}:
    from experiments.run.help import answer

    answer(sys.orig_argv[-len(sys.argv)].removeprefix("-m"), sys.argv[1:])
