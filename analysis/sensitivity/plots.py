from pathlib import Path


def write_plots(run_dir: Path) -> list[Path]:
    return []
