"""Paired data: items that each have captions and an image or a target value."""
