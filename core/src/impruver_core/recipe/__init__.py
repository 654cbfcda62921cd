"""Recipes: YAML with lines, sections of every tool, layers, look-up by name or path."""
