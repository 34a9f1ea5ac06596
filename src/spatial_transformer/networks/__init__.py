"""The networks of the paper, one module for each experiment. Plain PyTorch."""
