"""Time everypool against torch, compilers and runtimes: `python -m benchmarks --help`."""
