"""The fused kernels on a GPU against torch eager and torch.compile; run by `make bench-gpu`."""
