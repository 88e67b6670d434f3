"""The report is one page that stands by itself, read back here and in a real browser."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest
from test_reporting_tables import parsed

import bayeslmm as blm
from bayeslmm.comparison import reml
from bayeslmm.report.page import picture
from bayeslmm.report.tables import decimals_of, number

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
NARROW, WIDE = 360, 1200
"""Pixels: a small telephone and a screen."""

CONTRAST = 4.5
"""WCAG 2.2, success criterion 1.4.3 (AA) for text of normal size."""

PROBE = """<!DOCTYPE html><html><body><pre id="found">unfinished</pre><script>
const errors = [];
function look(width) {
  return new Promise(resolve => {
    const frame = document.createElement("iframe");
    frame.style.cssText = `width:${width}px;height:800px;border:0`;
    frame.onload = () => {
      const page = frame.contentDocument, root = page.documentElement;
      page.querySelectorAll("details").forEach(d => { d.open = true; });
      const images = [...page.images];
      const count = selector => page.querySelectorAll(selector).length;
      const outside = [...page.querySelectorAll("*")].filter(e =>
        !e.closest(".scroll, .skip") && e.getBoundingClientRect().right > width + 0.5);
      resolve({
        width: width, scroll: root.scrollWidth, images: images.length,
        decoded: images.filter(i => i.complete && i.naturalWidth > 0).length,
        alts: images.filter(i => i.alt.length > 20).length,
        outside: outside.map(e => e.outerHTML.slice(0, 80)),
        h1: count("h1"), tables: count("table"), captions: count("table > caption"),
        lang: root.lang, rules: page.styleSheets[0].cssRules.length,
        levels: [...page.querySelectorAll("h1,h2,h3,h4")].map(h => Number(h.tagName[1])),
        targets: [...page.querySelectorAll("a")].every(a =>
          page.querySelector(a.getAttribute("href"))),
        requests: frame.contentWindow.performance.getEntriesByType("resource")
          .map(r => r.name).filter(name => !name.startsWith("data:")),
        tall: root.scrollHeight,
      });
    };
    frame.src = "report.html";
    document.body.append(frame);
  });
}
Promise.all([look(NARROW), look(WIDE)]).then(found => {
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script></body></html>"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Report of a model whose names, rows and columns are all unusual, and its posterior."""
    data = blm.load_dataset("sleepstudy").iloc[:80].rename(columns={"Subject": "a<b & c"})
    data["dup"] = 2.0 * data["Days"]
    data.iloc[[3], data.columns.get_loc("Reaction")] = np.nan
    model = blm.LMM("Reaction ~ Days + dup + (Days | `a<b & c`)", data)
    post = model.fit(draws=250, random_seed=1)
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert post.report(path, title="Sleep & <reaction>") == path
    return post, path


@pytest.fixture(scope="module")
def page(odd):
    return odd[1].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def dyestuff():
    return blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff2"), priors="flat")


@pytest.fixture(scope="module")
def flat(dyestuff):
    """A posterior of a singular fit."""
    return dyestuff.fit(draws=250, random_seed=1)


# --- the text of the page --------------------------------------------------------------


def test_it_is_balanced_and_structured(page):
    reader = parsed(page.removeprefix("<!DOCTYPE html>\n"))
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("h1") == 1
    assert tags.count("main") == 1
    assert tags.count("table") == tags.count("caption") >= 8
    assert "script" not in tags
    identifiers = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))
    links = [attrs["href"] for tag, attrs in reader.tags if tag == "a"]
    assert {link.removeprefix("#") for link in links} <= set(identifiers)
    assert "Sleep & <reaction>" in reader.text
    headers = [attrs for tag, attrs in reader.tags if tag == "th"]
    assert all("scope" in attrs for attrs in headers)


def test_nothing_is_loaded_from_anywhere(page):
    attributes = re.findall(r'(?:src|href|srcset|action|data)="([^"]*)"', page)
    assert attributes
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in attributes)
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_findings_and_notes_come_first(odd, page):
    post, _ = odd
    first = page.index('<section id="notes"')
    assert page.index('<section id="findings"') < first
    assert first < page.index('<section id="model"')
    notes = html.unescape(page[first : page.index('<section id="model"')])
    assert "1 row dropped" in notes
    assert "dup" in notes
    for note in post.notes:
        assert note in notes


def test_its_numbers_are_those_of_the_fit(odd, page):
    post, _ = odd
    text = html.unescape(page)
    fixed = post.fixef().loc["Days"]
    assert f"<td>{fixed['mean']:.2f}</td><td>{fixed['sd']:.2f}</td>" in text
    assert f"{fixed.iloc[-2]:.2f} to {fixed.iloc[-1]:.2f}" in text
    own = blm.LMM(post.design.formula.source, _data(post)).reml().fixef(level=0.89).loc["Days"]
    cells = f"<td>{own['estimate']:.2f}</td><td>{own['conf_low']:.2f} to {own['conf_high']:.2f}"
    assert cells in text
    icc = post.icc().iloc[0]
    assert f">{number(icc['mean'], decimals_of([icc['sd']], [], 2), 2)}</td>" in text
    assert post.methods_paragraph(findings=post.findings()) in text
    for _, row in post.priors.table().iterrows():
        assert f"<td>{row['prior']}</td>" in text
    check = post.check.predictive("max", random_seed=0).iloc[0]
    assert f"<td>{check['p_value']:.2f}</td>" in text


def _data(post):
    return post.design.data


def test_every_picture_is_there(page):
    pictures = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
    assert len(pictures) == 8
    assert all(base64.b64decode(p).startswith(b"\x89PNG") for p in pictures)
    assert "not shown" not in page


@pytest.mark.slow
def test_what_does_not_apply_is_said(dyestuff, tmp_path):
    """Also with every picture that applies drawn for a singular fit."""
    post = dyestuff.fit(method="laplace", random_seed=1)
    post.report(tmp_path / "flat.html", reml=False)
    text = html.unescape((tmp_path / "flat.html").read_text(encoding="utf-8"))
    assert "Prior and posterior densities: not shown.</strong> Flat priors cannot be drawn" in text
    assert "Data and fitted lines: not shown." in text
    assert "Comparison with REML: not shown.</strong> it was not asked for" in text
    assert "Pareto k of the importance ratios" in text
    for message in post.diagnostics.messages():
        assert message in text


def test_a_given_estimate_is_compared(dyestuff, flat, tmp_path, monkeypatch):
    monkeypatch.setattr("bayeslmm.report.page._png", lambda draw: ("", 10, 10))
    flat.report(tmp_path / "ml.html", reml=dyestuff.ml())
    text = html.unescape((tmp_path / "ml.html").read_text(encoding="utf-8"))
    assert "ML fit that was given" in text
    assert "at the boundary: the estimate is at the boundary of its range" in text
    assert "sd[Batch, Intercept] is estimated at zero." in text


def test_every_verdict_on_an_estimate_has_words():
    template = resources.files("bayeslmm.report") / "templates" / "report.html"
    words = template.read_text(encoding="utf-8")
    verdicts = [reml.AGREES, reml.PRIOR, reml.PULLED_UP, reml.PULLED_DOWN, reml.NARROWED]
    verdicts += [reml.FAR, reml.BOUNDARY, reml.POORLY_SAMPLED, reml.DIFFERS]
    assert all(f'"{verdict}": "' in words for verdict in verdicts)


def test_a_defect_is_not_hidden():
    def broken(backend):
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        picture(broken)


def test_without_matplotlib_pictures_are_replaced_by_words(flat, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    flat.report(tmp_path / "words.html")
    text = html.unescape((tmp_path / "words.html").read_text(encoding="utf-8"))
    assert "<img" not in text
    assert text.count("needs 'matplotlib', which is not installed") >= 6


def test_no_figure_stays_open_and_the_users_style_does_not_matter(flat):
    import matplotlib.pyplot as plt

    mine = plt.figure()
    before = plt.get_fignums()

    def shown():
        return picture(flat.plot.caterpillar)

    light = shown()
    assert light.png
    with plt.style.context("dark_background"):
        dark = shown()
        assert plt.rcParams["figure.facecolor"] == "black"
    assert plt.get_fignums() == before
    assert light == dark
    plt.close(mine)


def test_files_are_not_overwritten_unasked(flat, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        flat.report(path)
    assert path.read_text(encoding="utf-8") == "mine"
    with pytest.raises(ValueError, match=r"ending in \.html"):
        flat.report(tmp_path / "report.pdf")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        flat.report(tmp_path / "nowhere" / "report.html")
    with pytest.raises(ValueError, match="prob=89"):
        flat.report(path, overwrite=True, prob=89)
    assert path.read_text(encoding="utf-8") == "mine"


def luminance(colour):
    """Relative luminance of WCAG of a colour #rrggbb."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_contrast_is_sufficient_in_light_and_dark():
    style = resources.files("bayeslmm.report") / "templates" / "style.css"
    schemes = re.findall(r":root \{(.*?)\}", style.read_text(encoding="utf-8"), flags=re.S)
    assert len(schemes) == 3
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", scheme))
        for ground in ("page", "soft"):
            for name in ("text", "quiet", "link", "mark"):
                low, high = sorted(luminance(colours[c]) for c in (ground, name))
                assert (high + 0.05) / (low + 0.05) >= CONTRAST, (name, ground)


# --- in a browser ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(odd, tmp_path_factory):
    """What a browser finds on the page at two widths, and what it wrote to its console."""
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome is installed")
    _, path = odd
    probe = path.with_name("probe.html")
    probe.write_text(
        PROBE.replace("NARROW", str(NARROW)).replace("WIDE", str(WIDE)), encoding="utf-8"
    )
    profile = tmp_path_factory.mktemp("profile")
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
        f"--user-data-dir={profile}",
        "--dump-dom",
        probe.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.S)
    assert found is not None
    assert found[1] != "unfinished"
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console


def test_the_console_is_silent(seen):
    assert seen[1] == []


@pytest.mark.parametrize("place", [0, 1], ids=["narrow", "wide"])
def test_the_page_in_a_browser(seen, place):
    found = seen[0][place]
    assert found["width"] == (NARROW, WIDE)[place]
    assert found["images"] == found["decoded"] == found["alts"] == 8
    assert found["h1"] == 1
    assert found["tables"] == found["captions"] >= 9
    assert found["lang"] == "en"
    assert found["rules"] > 20
    assert found["targets"]
    assert found["requests"] == []
    assert found["tall"] > 3000
    steps = np.diff(found["levels"])
    assert found["levels"][0] == 1
    assert steps.max() == 1


@pytest.mark.parametrize("place", [0, 1], ids=["narrow", "wide"])
def test_nothing_sticks_out(seen, place):
    found = seen[0][place]
    assert found["scroll"] <= found["width"]
    assert found["outside"] == []
