"""Pure tensor functions on boxes, bins and numbers; imports torch only."""
