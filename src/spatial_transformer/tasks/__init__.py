"""The LightningModules: loss, metrics and optimizer of each experiment."""
