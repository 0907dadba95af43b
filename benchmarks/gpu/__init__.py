"""The cuda target against cuBLAS, torch and Triton on one NVIDIA GPU: kernels and whole models.

    python -m benchmarks.gpu build      where the compiler is; needs no GPU; writes build/gpu.tar.xz
    python -m benchmarks.gpu run        where the GPU is; needs numpy and build/gpu.tar.xz
    python -m benchmarks.gpu dry-run    both on small shapes, an emulated device and a bare Python

Parts, any of which ``--part`` names: models, factorized, grid.
The machine with the GPU needs no compiler and no tvm package: what runs there of TVM is in the
archive. Peers that it lacks (torch, Triton, cuBLAS) are left out with a line.
"""
