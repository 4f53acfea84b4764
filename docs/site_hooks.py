"""Hooks of MkDocs: pages from files outside docs/, and notebooks as pages.

Links in the repository are relative to it, so that they work in a checkout; here those that leave docs/ are rewritten.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "constraints.txt", "results/**/*")
ABLATIONS = {  # folder below results/ -> title of its report
    "cifar10/tokenizers": "Tokenizers and latent dimensions on CIFAR-10",
    "cifar10/targets": "What is predicted, on CIFAR-10",
    "cifar10/deconstruct": "From a diffusion transformer to l-DAE on CIFAR-10",
}
REPORTS = """# Reports

What `ldae report` writes from the rows in `results/`, built with this site: each page has its figures as SVG, PDF, PNG
and CSV. The pictures of the trials are not part of the repository; a note stands in their place.

{links}

<iframe src="{first}" title="{title}" style="width: 100%; height: 80vh; border: 1px solid #8884"></iframe>
"""
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?!\w+:|#)(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
CELL = re.compile(r"^# %%(?P<markdown> \[markdown\])?.*\n", flags=re.M)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/, and a page for each notebook."""
    for path in (path for pattern in OUTSIDE for path in sorted(ROOT.glob(pattern)) if path.is_file()):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".md":
            files.append(File.generated(config, name, content=path.read_text(encoding="utf-8")))
        else:
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.py")):
        page = notebook_page(path.read_text(encoding="utf-8"), path.name)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
    for name, content in reports():
        files.append(File.generated(config, f"results/{name}", content=content))
    return files


def reports() -> Iterator[tuple[str, str | bytes]]:
    """Yield (path below results/, content) of the reports of the ablations and of the page that leads to them."""
    sys.path.insert(0, str(ROOT))  # the package of this checkout, whichever is installed
    from ldae.app.ablation.report import write

    for name, title in ABLATIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            for file in ("rows.jsonl", "others.jsonl"):
                shutil.copyfile(ROOT / "results" / name / file, out / file)
            write(out, title)
            for path in (out / "index.html", *sorted((out / "figures").iterdir())):
                yield f"{name}/report/{path.relative_to(out).as_posix()}", path.read_bytes()
    pages = {title: f"{name}/report/index.html" for name, title in ABLATIONS.items()}
    links = "\n".join(f"- [{title}]({page})" for title, page in pages.items())
    title, first = next(iter(pages.items()))
    yield "reports.md", REPORTS.format(links=links, first=first, title=title)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links at the pages of the site; one to a file that the site does not have becomes plain text."""
    source = page.file.src_uri
    # where the page's text lies in the repository
    inside = (ROOT / "docs" / source).with_suffix(".py" if source.startswith("notebooks/") else ".md").exists()
    folder = posixpath.dirname(f"docs/{source}" if inside else source)

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match["target"]))
        if target == "README.md":
            target = "docs/index.md"
        target = target.removeprefix("docs/")
        if target.startswith("notebooks/"):
            target = target.removesuffix(".py") + ".md" * target.endswith(".py")
        if files.get_file_from_path(target) is None:
            return match["text"]
        path = posixpath.relpath(target, posixpath.dirname(source) or ".")
        return f"[{match['text']}]({path}{match['anchor'] or ''})"

    return LINK.sub(rewrite, markdown)


def notebook_page(source: str, name: str) -> str:
    """Return a notebook in the percent format as Markdown."""
    parts = CELL.split(source)[1:]  # kind, cell, kind, cell, ...
    cells = []
    for kind, text in zip(parts[::2], parts[1::2], strict=True):
        if kind:
            cells.append(re.sub(r"^# ?", "", text, flags=re.M).strip())
        elif text.strip():
            cells.append(f"```python\n{text.strip()}\n```")
    convert = (
        f"`docs/notebooks/{name}` opens in Jupyter (`pip install jupytext`), and `jupytext --to ipynb` converts it."
    )
    title, _, rest = "\n\n".join(cells).partition("\n")
    return f"{title}\n\n{convert}\n{rest}\n"
