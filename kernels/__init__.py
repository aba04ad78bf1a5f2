"""Tensor functions: a public contract, a plain-torch reference, where it pays a Triton kernel."""
