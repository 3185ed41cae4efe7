"""The methods as functions of tensors: no PEFT here, each map can be used and tested alone."""
