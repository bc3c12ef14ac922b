"""Numbers about a model: how good its answers are (``coco``) and what they cost (``speed``)."""
