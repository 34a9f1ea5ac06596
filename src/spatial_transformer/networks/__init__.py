"""The networks of the paper, one module per experiment, in plain PyTorch."""
