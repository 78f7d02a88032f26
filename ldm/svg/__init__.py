"""Drawings as values, as SVG text, as sequences of numbers, and as latents.

drawing.py      Drawing, and its SVG text
parsing.py      SVG text to a Drawing; the only file that needs svgelements
sequences.py    a Drawing to a tensor [L, COLUMNS], and back
autoencoder.py  sequences [B, L, COLUMNS] to latents [B, d], and back
"""
