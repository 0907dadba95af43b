"""Generated CUDA kernels as TIR: what needs TVM; the templates import it when they build."""
