"""Tensor functions: a public contract, a plain-torch reference, and where it pays a Triton kernel."""
