"""Model files, read and written: single files as CompVis published them, and diffusers folders, local or on the hub."""
