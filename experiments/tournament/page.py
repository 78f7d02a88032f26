from pathlib import Path
def write_page(out, cfg):
    return out
