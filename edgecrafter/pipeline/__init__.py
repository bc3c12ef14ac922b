"""All stages of EdgeCrafter in one go, with and without distillation."""
