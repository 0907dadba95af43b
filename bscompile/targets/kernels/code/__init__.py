"""The TIR that the kernel templates generate."""
