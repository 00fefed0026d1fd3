"""Say every half minute where a running study is, until interrupted: `make watch`."""

import sys
import time
from pathlib import Path

from veil.report import progress

while True:
    print(progress.shown(Path("results"), Path(".snakemake/log")), flush=True)
    if "--once" in sys.argv:
        break
    print(flush=True)
    time.sleep(30)
