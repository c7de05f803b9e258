"""Opens pages of reports in headless Chromium, as files, in several widths and both colour schemes, and on paper.

    python pages.py CHROMIUM_FOLDER SCREENSHOT_FOLDER PAGE.html...

Fails at a message on the console, at a request to anything but the page, at a plot that is missing, empty or out of its
figure, at a page that is wider than its window, and at text too small to read.
"""

import os
import pathlib
import sys

from playwright.sync_api import sync_playwright

WIDTHS = {375: 720, 768: 1024, 1280: 800}
# In CSS pixels.
SMALLEST_TEXT = 9

# Of every figure: its name, the sizes of its plot and of what is drawn in it, and the sizes of its texts.
FIGURES = """() => [...document.querySelectorAll('figure')].map(figure => {
    const svg = figure.querySelector(':scope > svg'), box = svg?.getBoundingClientRect();
    const drawn = [...(svg?.querySelectorAll('.l, .m, .o, .r') ?? [])].map(shape => shape.getBoundingClientRect());
    const outside = drawn.filter(b => b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 1 || b.bottom > box.bottom + 1);
    return {
        id: figure.id, width: box?.width ?? 0, height: box?.height ?? 0,
        drawn: drawn.filter(b => b.width + b.height > 0).length, outside: outside.length,
        text: Math.min(...[...(svg?.querySelectorAll('text') ?? [])].map(t => parseFloat(getComputedStyle(t).fontSize) * box.width / svg.viewBox.baseVal.width)),
        named: svg?.getAttribute('aria-labelledby')?.split(' ').every(id => document.getElementById(id)?.textContent.trim()),
    };
})"""
# Colours that a reader sees.
COLOURS = """() => {
    const of = selector => [...document.querySelectorAll(selector)].map(e => getComputedStyle(e));
    return {
        paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
        lines: [...new Set(of('figure > svg .l').map(s => s.stroke))],
    };
}"""


def luminance(colour):
    channels = [int(c) / 255 for c in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def check(browser, path, width, scheme, shots):
    """What is wrong with a page at a width and in a colour scheme, and its paper's colour."""
    wrong = []
    page = browser.new_page(viewport={"width": width, "height": WIDTHS[width]}, color_scheme=scheme)
    page.on("console", lambda message: wrong.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(f"request: {request.url}"))
    page.goto(path.absolute().as_uri())
    found = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    if found[0] > found[1]:
        wrong.append(f"{found[0]} pixels wide in a window of {found[1]}")
    figures = page.evaluate(FIGURES)
    if not figures:
        wrong.append("no figures")
    for figure in figures:
        if figure["width"] < 200 or figure["height"] < 100:
            wrong.append(f"{figure['id']}: {figure['width']} x {figure['height']}")
        if not figure["drawn"] or figure["outside"] or not figure["named"] or figure["text"] < SMALLEST_TEXT:
            wrong.append(f"{figure}")
    colours = page.evaluate(COLOURS)
    if contrast(colours["ink"], colours["paper"]) < 7:
        wrong.append(f"text of {colours['ink']} on {colours['paper']}")
    for line in colours["lines"]:
        if contrast(line, colours["paper"]) < 2.5:
            wrong.append(f"a line of {line} on {colours['paper']}")
    page.screenshot(path=shots / f"{path.parent.name}-{path.stem}-{width}-{scheme}.png", full_page=scheme == "light")
    page.emulate_media(media="print")
    if page.evaluate("[...document.querySelectorAll('figure > svg')].some(svg => svg.getBoundingClientRect().width < 100)"):
        wrong.append("a plot that is not printed")
    page.close()
    return [f"{path} at {width}, {scheme}: {what}" for what in wrong], colours["paper"], len(figures)


def main():
    chromium, shots, pages = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), [pathlib.Path(p) for p in sys.argv[3:]]
    if not pages:
        sys.exit("no pages")
    shots.mkdir(parents=True, exist_ok=True)
    # What the browser needs beside a system that has none of its libraries.
    env = {**os.environ, "LD_LIBRARY_PATH": f"{chromium / 'lib'}:{chromium}"}
    wrong, count = [], 0
    with sync_playwright() as play:
        for path in pages:
            args = ["--no-sandbox", "--disable-gpu", "--headless=shell"]
            browser = play.chromium.launch(executable_path=chromium / "chromium", env=env, args=args)
            papers = set()
            for width in WIDTHS:
                for scheme in ("light", "dark"):
                    found, paper, figures = check(browser, path, width, scheme, shots)
                    wrong += found
                    papers.add(paper)
                    count += figures
            if len(papers) != 2:
                wrong.append(f"{path}: light and dark are alike: {papers}")
            browser.close()
    print("\n".join(wrong) or f"{count} plots on {len(pages)} pages, in {len(WIDTHS)} widths and 2 schemes: in order")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
