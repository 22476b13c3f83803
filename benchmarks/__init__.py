"""Speed, as ratios taken in one run: ``python -m benchmarks --to osscl_lite/results/speed``."""
