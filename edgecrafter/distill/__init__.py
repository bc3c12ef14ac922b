"""Distillation methods: what they compute. Who trains them is in ``train``."""
