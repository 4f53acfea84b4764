"""Run the benchmarks: python tools/bench ROWS... KEY=VALUE ...; see bench.py."""

import sys

import bench

from ldae.app.cli import guarded

if __name__ == "__main__":
    if not sys.argv[1:] or {"-h", "--help"} & set(sys.argv):
        print(bench.__doc__)
        sys.exit(0 if sys.argv[1:] else 2)
    sys.exit(guarded(lambda: bench.main(sys.argv[1:])))
