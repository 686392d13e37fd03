"""Takes pictures of the report page in a real browser, in light and dark, wide and as narrow as a phone.

    python scripts/check_report_page.py MODEL.gguf [SRC] [--out FOLDER]

The browser is headless Chromium: the program that SUBBYTE_CHROMIUM names, or ``chromium`` on the path. The script fails
where the browser does, where the page asks the network for anything, or where it is wider than the window; how it looks
is for whoever opens the pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import subbyte

WIDTHS = {"wide": 1100, "phone": 360}
SCHEMES = {"light": [], "dark": ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]}

PROBE = """
<!doctype html><meta charset=utf-8><body><script>
const frame = document.createElement('iframe');
frame.style = 'width: WIDTHpx; height: 100px; border: 0';
frame.onload = () => {
  const page = frame.contentDocument.documentElement;
  const asked = frame.contentWindow.performance.getEntriesByType('resource').length;
  document.title = `wide ${page.scrollWidth} asked ${asked} height ${page.scrollHeight}`;
};
frame.srcdoc = PAGE;
document.body.append(frame);
</script>
"""


def browse(browser: list[str], *options: str) -> str:
    """What the browser prints."""
    with tempfile.TemporaryDirectory() as profile:
        fixed = ["--headless", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        command = [*browser, *fixed, *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} fails:\n{done.stderr}")
    return done.stdout


def measure(browser: list[str], html: str, width: int, folder: Path) -> tuple[int, int, int]:
    """Width and height that the page takes in a window of ``width``, and the number of requests it makes."""
    probe = folder / "probe.html"
    page = json.dumps(html).replace("</", "<\\/")
    probe.write_text(PROBE.replace("WIDTH", str(width)).replace("PAGE", page), encoding="utf-8")
    dom = browse(browser, "--virtual-time-budget=3000", "--window-size=1400,3200", "--dump-dom", probe.as_uri())
    probe.unlink()
    found = re.search(r"<title>wide (\d+) asked (\d+) height (\d+)</title>", dom)
    if found is None:
        raise SystemExit(f"the page did not load: {dom[:500]}")
    wide, asked, height = map(int, found.groups())
    return wide, height, asked


def main() -> int:
    """Run the checks; the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("path", metavar="MODEL.gguf")
    options.add_argument("against", metavar="SRC", nargs="?")
    options.add_argument("--out", type=Path, default=Path("out/report-page"))
    given = options.parse_args()
    browser = shlex.split(os.environ.get("SUBBYTE_CHROMIUM", "")) or [shutil.which("chromium") or "chromium"]
    html = subbyte.report(given.path, given.against).to_html()
    folder: Path = given.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text(html, encoding="utf-8")
    wrong = 0
    for name, width in WIDTHS.items():
        wide, height, asked = measure(browser, html, width, folder)
        wrong += wide > width or asked > 0
        print(f"{name}: {wide} of {width} pixels wide, {height} high, {asked} requests")
        if width < 500:  # the narrowest window of headless Chromium: the page is shown in a frame instead
            frame = (
                f'<body style="margin:0"><iframe src="report.html" width="{width}" height="{height}" frameborder="0">'
            )
            (folder / f"{name}.html").write_text(frame, encoding="utf-8")
        page = folder / (f"{name}.html" if width < 500 else "report.html")
        for scheme, switches in SCHEMES.items():
            picture = folder / f"{name}-{scheme}.png"
            size = f"--window-size={max(width, 500)},{height}"
            browse(browser, *switches, size, f"--screenshot={picture}", page.as_uri())
            print(picture)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
