"""Load pages in headless Chromium: what they measure, and what their script does to them."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (390, 1280)
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
_MEASURE = """<script>
const root = document.documentElement;
const cut = [...document.querySelectorAll("body *")].filter((one) =>
  (one.getBoundingClientRect().right > root.clientWidth + 1 ||
    (["hidden", "clip"].includes(getComputedStyle(one).overflowX) && one.scrollWidth > one.clientWidth + 1)) && !one.closest(".scroll, pre, svg, .stack b") && one.getClientRects().length);
parent.postMessage(JSON.stringify([innerWidth, root.scrollWidth - root.clientWidth, cut.map((one) => one.tagName + " " + one.textContent.trim().slice(0, 40))]), "*");
</script></body>"""


def dom_of(page: Path, *options: str) -> str:
    """Return the document as it is when its scripts have run."""
    assert CHROMIUM
    profile = page.with_name(f"{page.stem}.profile")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}",
        "--virtual-time-budget=3000", *options, "--dump-dom", f"file://{page.resolve()}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    shutil.rmtree(profile, ignore_errors=True)
    return done.stdout


def overflow_of(page: Path, folder: Path, widths: Sequence[int] = WIDTHS) -> dict[int, tuple[int, list[str]]]:
    """Return, for each width of a window, by how much the page is wider, and what stands outside without scrolling by itself."""
    text, places = _POLICY.subn("", page.read_text(encoding="utf-8"))
    assert places == 1
    (folder / "measured.html").write_text(text.replace("</body>", _MEASURE), encoding="utf-8")
    frames = "".join(
        f'<iframe src="measured.html" width="{width}" height="900" style="border:0"></iframe>' for width in widths
    )
    (folder / "frames.html").write_text(
        '<body><pre id="found"></pre><script>onmessage = (event) => found.textContent += event.data + "\\n"</script>'
        + frames
    )
    found = re.search(
        r'<pre id="found">(.*?)</pre>', dom_of(folder / "frames.html", "--window-size=1800,1000"), re.DOTALL
    )
    assert found
    lines = [json.loads(line) for line in html.unescape(found[1]).splitlines()]
    assert sorted(line[0] for line in lines) == sorted(widths)
    return {line[0]: (line[1], line[2]) for line in lines}


def assert_nothing_overflows(page: Path, folder: Path) -> None:
    """Check that a page is as wide as a phone and as a desktop, and that what is wider scrolls by itself."""
    for width, found in overflow_of(page, folder).items():
        assert found == (0, []), width


def after_script(page: Path, folder: Path, script: str) -> str:
    """Return the document after `script` of the test has run in it too, behind the page's own."""
    copy = folder / "scripted.html"
    text = _POLICY.sub("", page.read_text(encoding="utf-8"))
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return dom_of(copy)
