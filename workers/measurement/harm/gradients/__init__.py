"""Gradients at activations in the model's type: of drawn tokens through the head, through layers, and in float16."""
