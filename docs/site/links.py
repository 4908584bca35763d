"""A hook of MkDocs: pages keep the relative links that a code host follows, and the site has what they lead to.

A link of a page may leave docs/: to a source file, a folder, a notebook, or a page at the root. The site gets a page for
each such target, so that it needs no code host: a file is shown as code, a folder as a list, a notebook with its outputs.
"""

import base64
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".bash": "bash", ".json": "json"}
#: Pages at the root of the checkout.
ROOT_PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
HIDDEN = "---\nsearch:\n  exclude: true\n---\n"

#: The page of the site → the folder in the checkout from which its relative links are read.
_folders: dict[str, Path] = {}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for everything in the checkout that a page links to, and for what those pages link to."""
    _folders.clear()
    for name in ROOT_PAGES:
        _add(files, config, ROOT / name)
    waiting = [file for file in files if file.src_uri.endswith(".md")]
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        waiting += _add(files, config, notebook)
    while waiting:
        file = waiting.pop()
        folder = _folders.setdefault(file.src_uri, (DOCS / file.src_uri).parent)
        if file.src_uri.startswith("code/"):
            continue
        for _, target, _ in LINK.findall(file.content_string):
            path = _in_checkout(folder, target)
            if path is not None:
                waiting += _add(files, config, path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a page that leave docs/ lead to the pages that `on_files` has added."""
    folder = _folders.get(page.file.src_uri, DOCS)
    here = posixpath.dirname(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        path = _in_checkout(folder, found[2])
        if path is not None:
            uri = _uri_of(path)
        elif page.file.src_uri.startswith("project/") and (ROOT / found[2]).is_file():
            uri = (ROOT / found[2]).relative_to(DOCS).as_posix()
        else:
            return found[0]
        return found[1] + posixpath.relpath(uri, here or ".") + found[3]

    return markdown if page.file.src_uri.startswith("code/") else LINK.sub(link, markdown)


def _in_checkout(folder: Path, target: str) -> Path | None:
    """Return the file or folder outside docs/ that a link leads to, None for any other link."""
    if "://" in target or target.startswith("mailto:"):
        return None
    path = (folder / target).resolve()
    is_page = path.is_relative_to(DOCS) and not path.is_relative_to(DOCS / "site")
    return None if is_page or not path.is_relative_to(ROOT) or not path.exists() else path


def _uri_of(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix()
    if name in ROOT_PAGES:
        return f"project/{name}"
    if path.suffix == ".ipynb":
        return f"examples/{path.stem}.md"
    return f"code/{name}.md"


def _add(files: Files, config: MkDocsConfig, path: Path) -> list[File]:
    uri = _uri_of(path)
    if files.get_file_from_path(uri) is not None:
        return []
    file = File.generated(config, uri, content=_content_of(path))
    _folders[uri] = path.parent
    files.append(file)
    return [file]


def _content_of(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix()
    if name in ROOT_PAGES:
        return path.read_text()
    if path.suffix == ".ipynb":
        return notebook_page(json.loads(path.read_text()))
    if path.is_dir():
        shown = [entry.name for entry in sorted(path.iterdir()) if not entry.name.startswith(("_", "."))]
        return f"{HIDDEN}# {name}/\n\n" + "\n".join(f"- `{entry}`" for entry in shown) + "\n"
    return f"{HIDDEN}# {name}\n\n``````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text()}\n``````\n"


def notebook_page(notebook: dict[str, Any]) -> str:
    """Write a notebook as Markdown: its text, its code, and what the code printed and drew."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [_output(output) for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        png = base64.b64encode(base64.b64decode("".join(data["image/png"]))).decode()
        return f'<img alt="what the cell above draws" src="data:image/png;base64,{png}">'
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return f"```text\n{text}\n```"
