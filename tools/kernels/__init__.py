"""The verb ``metagrad-bench kernels``: networks' INT8 and INT4 training steps against FP32 and bf16, layer by layer."""
