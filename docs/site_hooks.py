"""What the documentation site needs beside mkdocs.yml: pages that lie outside docs/, and links between all of them.

Every page is written for a code host, with links that are relative to its own file. On the site a link to a file that
has a page leads to that page; a link to any other file of the repository becomes its bare text, since it has no address
there (or, where `repo_url` is set, the address at the host).
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
OUTSIDE = {  # page -> the file it is made of
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "benchmarks.md": "benchmarks/README.md",
    "results_paper.md": "results/paper/README.md",
    "results_sensitivity.md": "results/sensitivity/README.md",
    "published.md": "analysis/tables/published/README.md",
}
PAGES = {source: page for page, source in OUTSIDE.items()}
LINK = re.compile(r"(?P<mark>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/."""
    from mkdocs.structure.files import File

    for page, source in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return with_site_links(markdown, page.file.src_uri, config.repo_url or "")


def with_site_links(markdown: str, page: str, repo_url: str = "") -> str:
    """The text of a page with its links to files of the repository turned into what leads somewhere on the site.

    Raises:
        FileNotFoundError: a link to a file that is not there.
    """
    folder = PurePosixPath(OUTSIDE.get(page, f"docs/{page}")).parent

    def rewritten(match: re.Match[str]) -> str:
        if ":" in match["target"]:  # an address, not a file
            return match[0]
        source = os.path.normpath(folder / match["target"])
        if not (ROOT / source).exists():
            raise FileNotFoundError(f"{page}: links to {match['target']}, which is not there")
        inside = PAGES.get(source) or (source.removeprefix("docs/") if source.startswith("docs/") else None)
        if inside is not None:
            target = os.path.relpath(inside, PurePosixPath(page).parent)
            return f"{match['mark']}[{match['text']}]({target}{match['anchor'] or ''})"
        return f"[{match['text']}]({repo_url.rstrip('/')}/blob/main/{source})" if repo_url else match["text"]

    return LINK.sub(rewritten, markdown)
