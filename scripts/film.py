#!/usr/bin/env python
"""Film the first episode of one or more runs, side by side, as a GIF or an MP4 of at most 1 MB.

    python scripts/film.py runs=RUN_DIR[,RUN_DIR,...] [out=docs/images/agent.gif] [seconds=8] [checkpoint=best]

The picture is made smaller, with fewer frames per second, until it fits. `trust=true` is that of dpg-eval.
Needs the extra `video`: pip install -e '.[video]'
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dpg_cli.cli.arguments import output_file, parse, run_script, whole
from dpg_cli.cli.film import render_without_display, require_imageio
from dpg_cli.errors import UserError

MOST = 1_000_000  # bytes
SIZES = ((25, 320), (20, 280), (17, 240), (14, 200), (12, 160), (10, 120))  # frames per second, width of each run


def main() -> None:
    values = parse(sys.argv[1:], ("runs", "out", "seconds", "checkpoint", "trust"), required=("runs",))
    out = output_file(values, "out", "docs/images/agent.gif", (".gif", ".mp4"))
    seconds = whole(values, "seconds", 8, minimum=1)
    require_imageio()
    render_without_display()

    from dpg_cli.cli.folder import load_config
    from dpg_cli.cli.play import Settings, play
    from dpg_cli.cli.progress import EvaluationProgress

    with tempfile.TemporaryDirectory() as folder:
        films = []
        for number, name in enumerate(values["runs"].split(",")):
            run, film = Path(name), Path(folder, f"{number}.mp4")
            config = load_config("runs", run, values.get("trust", "false"))
            which = values.get("checkpoint", "best")
            settings = Settings(checkpoint=which, episodes=1, seed=0, video=film, film_seconds=seconds)
            played = play(run.absolute(), config, settings, EvaluationProgress("film.py"))
            print(f"{name}: {played.env_id}, step {played.step:,}, return {played.returns[0]:.1f}")
            films.append(film)
        for fps, width in SIZES:
            write(films, out, seconds, fps, width)
            if out.stat().st_size <= MOST:
                print(f"-> {out}: {out.stat().st_size:,} bytes, {fps} frames per second, {width} pixels a run")
                return
    out.unlink()
    raise UserError(f"seconds={seconds}: the smallest size is still larger than {MOST:,} bytes")


def write(films: Sequence[Path], out: Path, seconds: int, fps: int, width: int) -> None:
    """Write films side by side."""
    import imageio_ffmpeg

    inputs = [part for film in films for part in ("-t", str(seconds), "-i", str(film))]
    scaled = "".join(f"[{i}:v]fps={fps},scale={width}:-2[v{i}];" for i in range(len(films)))
    joined = "".join(f"[v{i}]" for i in range(len(films))) + (
        f"hstack=inputs={len(films)}" if len(films) > 1 else "null"
    )
    if out.suffix == ".gif":
        joined += ",split[a][b];[a]palettegen=max_colors=64[p];[b][p]paletteuse=dither=none:diff_mode=rectangle"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *inputs, "-filter_complex", scaled + joined, out]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    run_script("scripts/film.py", main)
