"""Integer kernels: plain int8 tensors in, exact integers out; no autograd and no policy about scales."""
