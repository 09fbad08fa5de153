"""Stillroom's library: plain arguments in, values and stores out. It knows no recipe; `stages` does."""
