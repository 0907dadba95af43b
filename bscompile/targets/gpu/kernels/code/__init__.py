"""Generated kernels of GPU-like targets: threads, tiles in shared memory, epilogues."""
