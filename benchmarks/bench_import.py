"""What `import ovtensor` costs on top of `import numpy`, in paired processes.

Run it with ``python benchmarks/bench_import.py``.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 15


def seconds(code: str) -> float:
    """Wall-clock seconds of a new interpreter that runs ``code``."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Print both medians and the median difference, in milliseconds."""
    pairs = [(seconds("import numpy"), seconds("import numpy, ovtensor")) for _ in range(ROUNDS)]
    alone, both = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
    extra = 1000 * statistics.median(second - first for first, second in pairs)
    print(f"import numpy {alone:.1f} ms, with ovtensor {both:.1f} ms, difference {extra:.1f} ms")


if __name__ == "__main__":
    main()
