"""The cuda target against cuBLAS, torch and Triton on one NVIDIA GPU: kernels and whole models.

    python -m benchmarks.gpu build      where the compiler is; needs no GPU; writes build/gpu
    python -m benchmarks.gpu run        where the GPU is; needs numpy, torch, tvm_ffi, build/gpu
    python -m benchmarks.gpu dry-run    all of it on small shapes and the emulated device

Parts, any of which ``--part`` names: grid, factorized, models.
The machine with the GPU needs no compiler and no tvm package: ``build`` puts the two runtime
libraries beside the kernels.
"""
