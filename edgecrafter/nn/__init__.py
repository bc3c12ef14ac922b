"""Blocks that know no task."""
