"""The picture of README.md: run ``python docs/readme_picture.py`` and commit what it writes."""

from pathlib import Path

import matplotlib

matplotlib.use("agg")

import bayeslmm as blm

PICTURE = Path(__file__).parent / "_static" / "sleepstudy_reml.png"


def draw(path: Path = PICTURE) -> None:
    """Posterior densities of the sleep study with the REML estimates, on white."""
    sleep = blm.load_dataset("sleepstudy")
    model = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep)
    post = model.fit(random_seed=1)
    picture = post.plot.reml(model.reml(), col_wrap=3, figure_kwargs={"figsize": (8, 4.4)})
    picture.savefig(path, dpi=100, facecolor="white")


if __name__ == "__main__":
    draw()
