"""The words that explain the columns, the same in HTML and markdown."""

from __future__ import annotations

#: How each number is to be read; the same words in HTML and markdown.
DEFINITIONS: tuple[tuple[str, str], ...] = (
    ("Weights, activations", "forward quantizer and bits; FP32 means that the forward pass is floating point"),
    ("Error signal ∇y", "quantizer of the gradients with respect to activations; only low-bit ones give integer "
     "backward products"),
    ("Weight gradient ∇W", "what makes and quantizes the weight gradient: the second, independent choice"),
    ("Accuracy", "of the whole test set after the last epoch, never the best one; mean over seeds with Student's 95 % "
     "interval"),
    ("Δ to FP32", "points against the FP32 row of the same suite, model, data, device and epochs; mean over the seeds "
     "that both have"),
    ("integer", "the low-bit products ran as integer products of that width"),
    ("emulated", "INT4 codes in INT8 containers: the results are INT4's, the speed is not"),
    ("simulated", "floating-point products of the quantized values: the results are low-bit, the speed is not"),
    ("float", "no low-bit product ran"),
    ("Step", "median of all measured steps with their quartiles; warm-up is left out; two rows' steps were not taken "
     "side by side, so methods are compared by Step vs FP32"),
    ("Step vs FP32", "ratio of medians against FP32 steps that alternated with the row's own in the same processes, "
     "with its 95 % interval by bootstrap over processes; an interval wholly below 1 is faster; one process gives no "
     "interval and no order"),
    ("Forward, backward, meta, optimizer", "shares of the mean step; what is missing to 100 is data and time that no "
     "phase covers"),
    ("Peak allocated", "largest sum of live tensors in a few training steps: the allocator's count on CUDA, storage "
     "tracking on the CPU; the largest over seeds"),
    ("Peak reserved", "what CUDA's caching allocator took from the driver"),
    ("Peak process", "the whole process of the memory pass: resident peak on the CPU, NVML's figure on CUDA; a timing "
     "process, whose memory the device's figure shows, holds the FP32 model besides"),
    ("Peak device", "everything on the device, other processes included"),
    ("Hypernetwork adds", "peak with the hypernetwork minus peak without it, measured in two fresh processes; of "
     "process memory true to about 1 MiB"),
    ("vs retain", "against the row that keeps the whole graph and is otherwise the same; step times are compared "
     "through their ratios to FP32, and both intervals add up; retain and slim run an LSTM as the published nn.LSTM, "
     "recompute and tabulate as our reduced cell"),
    ("Added memory vs retain", "ratio of what the hypernetwork adds; on a CPU the allocated bytes of nn.LSTM hold "
     "oneDNN's workspace in full, about 1 KiB a weight at H = 4 and 10 KiB at H = 100, touched or not; process memory "
     "counts what was touched"),
    ("Meta-gradient norm", "of the gradient for the hypernetwork's weights, summed over layers, at the last observed "
     "step; slim's is one layer's share and does not compare with the others'"),
    ("Integer share", "share of the multiply-accumulates of the model's layers that ran as integers; the hypernetwork "
     "is not in it"),
    ("Hypernetwork, float multiply-adds", "floating-point multiply-accumulates of the hypernetwork in the same step"),
    ("bold", "the best value of a column as measured, which may be chance; a value of one seed or one process, or of "
     "a row with seeds that did not finish, is never marked"),
)  # fmt: skip
