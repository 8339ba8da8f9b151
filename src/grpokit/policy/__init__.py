"""The model that is trained: load it, score with it, take an optimizer step, hand its weights out."""
