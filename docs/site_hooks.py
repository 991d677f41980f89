"""What the documentation site needs beside mkdocs.yml: pages from elsewhere, and links between all of them.

From elsewhere: Markdown outside docs/, notebooks, the report of results/paper, and a page for each scheme and backbone,
made of its docstring, so that a new one appears by itself.

Every page is written for a code host, with links that are relative to its own file. On the site a link to a file that
has a page leads to that page; a link to any other file of the repository becomes its bare text, since it has no address
there (or, where `repo_url` is set, the address at the host).
"""

from __future__ import annotations

import base64
import inspect
import json
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

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
    "results.md": "results/README.md",
    "results_paper.md": "results/paper/README.md",
    "results_whole_network.md": "results/whole_network/README.md",
    "results_ptq.md": "results/ptq/README.md",
    "results_content.md": "results/content/README.md",
    "results_controls.md": "results/controls/README.md",
    "results_sensitivity.md": "results/sensitivity/README.md",
    "results_x2.md": "results/x2/README.md",
    "results_foreign.md": "results/foreign/README.md",
    "zoo.md": "zoo/README.md",
    "published.md": "analysis/tables/published/README.md",
}
IN_THE_ZOO = "The package has networks of some schemes and backbones. For these the last command is enough.\n\n"
NOTEBOOKS = {f"notebooks/{path.stem}.md": path for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
REPORT = "report.html"
OUTSIDE |= {page: path.relative_to(ROOT).as_posix() for page, path in NOTEBOOKS.items()}
PICTURES = ["results/whole_network/plots/psnr_bitops_x4_patch.png"]  # of these pages, outside docs/
PAGES = {source: page for page, source in OUTSIDE.items()} | {path: path for path in PICTURES}
LINK = re.compile(r"(?P<mark>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/."""
    from mkdocs.structure.files import File

    for page, source in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        content = notebook_page(json.loads(text), source) if page in NOTEBOOKS else text
        files.append(File.generated(config, page, content=content))
    for page, content in registered_pages().items():
        files.append(File.generated(config, page, content=content))
    report = "results/paper/report.html"
    for page, source in {REPORT: report, **{path: path for path in PICTURES}}.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of schemes and backbones to the navigation, below their tables."""
    for part in config.nav or []:
        for entry in next(iter(part.values())) if isinstance(next(iter(part.values())), list) else []:
            title, pages = next(iter(entry.items()))
            if title in ("Schemes", "Backbones"):
                folder = title.lower()
                pages += [{Path(page).stem: page} for page in registered_pages() if page.startswith(f"{folder}/")]
    return config


def registered_pages() -> dict[str, str]:
    """A page for each scheme and each backbone: path -> Markdown."""
    from cadyq.models.network import BACKBONES
    from cadyq.schemes.base import SCHEMES

    schemes = {f"schemes/{name}.md": scheme_page(name, SCHEMES.get(name)) for name in SCHEMES.names()}
    return schemes | {f"backbones/{name}.md": backbone_page(name, BACKBONES.get(name)) for name in BACKBONES.names()}


def scheme_page(name: str, scheme: type[Any]) -> str:
    """What the docstring says, how the scheme is used, and its options with defaults and meaning."""
    kind = "dynamic bits" if scheme.dynamic else "fixed bits"
    role = f"A control with {kind}" if scheme.control else f"A scheme with {kind}"
    how, commands = making(name, scheme)
    use = "\n".join([*commands, f"python -m analysis.run_all --backbones idn --schemes fp32 {name}"])
    texts = option_texts(scheme)
    options = "\n".join(
        f"| `{field.name}` | `{field.default!r}` | {texts.get(field.name, '')} |" for field in fields(scheme)
    )
    return (
        f"# {name}\n\n{role}. It {how}.\n\n{documented(scheme)}\n\n## Use\n\n{IN_THE_ZOO * bool(commands)}"
        f"```\n{use}\n```\n\n"
        f"## Options\n\n| option | default | meaning |\n|---|---|---|\n{options}\n"
    )


def making(name: str, scheme: type[Any]) -> tuple[str, list[str]]:
    """How a network of a scheme is made: the end of a sentence, and the commands before it can be measured."""
    ship = "python -m cadyq.zoo.ship run RUN --zoo MY_ZOO\nexport CADYQ_ZOO=MY_ZOO"
    if name == scheme.parent:
        return "quantizes nothing", []
    if not scheme.trained:
        return "runs from calibration alone", []
    if scheme.made_by() == "calibrate":
        limit = "--minutes 5 " * bool(scheme().stages())
        command = f"python -m cadyq.calibrate --scheme {name} --model zoo:idn_x4_fp32 {limit}--out RUN --zoo MY_ZOO"
        return "is calibrated and tuned on LR images", [command, "export CADYQ_ZOO=MY_ZOO"]
    if scheme.made_by() == "derive":
        parent = f"zoo:idn_x4_{scheme.parent}"
        command = f"python -m cadyq.derive {name} --parent {parent} --data-root PHOTOGRAPHS --out RUN"
        return f"is derived from a trained `{scheme.parent}`", [command, ship]
    recipe = name if (ROOT / "cadyq" / "training" / "recipes" / f"{name}.toml").exists() else "finetune"
    command = f"python -m cadyq.train --recipe {recipe} --scheme {name} --model zoo:idn_x4_fp32 --data-root PHOTOGRAPHS"
    return "is trained", [f"{command} --out RUN", ship]


def option_texts(scheme: type[Any]) -> dict[str, str]:
    """Option -> what the docstrings of a scheme and its bases say of it."""
    texts: dict[str, str] = {}
    for cls in reversed(scheme.__mro__):
        listed = inspect.cleandoc(cls.__dict__.get("__doc__") or "").partition("Attributes:\n")[2]
        for names, text in re.findall(r"^    ([\w, ]+): (.+(?:\n        .+)*)", listed, re.MULTILINE):
            texts |= dict.fromkeys(names.split(", "), " ".join(text.split()).replace("|", "\\|"))
    return texts


def backbone_page(name: str, backbone: type[Any]) -> str:
    """What the docstring says, and how a network is made."""
    use = f'import cadyq\n\nnetwork = cadyq.create_model("{name}", scale=4)\nprint(network)'
    return f"# {name}\n\n{documented(backbone)}\n\n## Use\n\n```python\n{use}\n```\n"


def documented(cls: type[Any]) -> str:
    """The docstrings of the module and the class of something registered, and where its code is."""
    module = inspect.getmodule(cls)
    own = inspect.cleandoc(cls.__doc__ or "")
    body = re.split(r"\n(Args|Attributes|Raises):\n", own)[0].strip()
    texts = [inspect.cleandoc(getattr(module, "__doc__", None) or ""), body]
    lines = "\n\n".join(text for text in texts if text).splitlines()
    # an indented line is code, where Markdown shows a backslash
    shown = [line if line.startswith("    ") else re.sub(r"([*<])", r"\\\1", line) for line in lines]
    return "\n".join(shown) + f"\n\nCode: `{cls.__module__}`."


def notebook_page(notebook: dict[str, Any], source: str) -> str:
    """A notebook as Markdown, with its stored outputs."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
        else:
            parts.append(f"```python\n{text}\n```")
            parts += [shown for output in cell["outputs"] for shown in shown_output(output)]
    return "\n\n".join([*parts, f"This page is the notebook `{source}`.", ""])


def shown_output(output: dict[str, Any]) -> Iterator[str]:
    """The richest form of an output of a cell."""
    if output["output_type"] == "stream":
        yield f"```text\n{''.join(output['text']).rstrip()}\n```"
        return
    data = {kind: "".join(text) if isinstance(text, list) else text for kind, text in output.get("data", {}).items()}
    if "image/png" in data:
        png = base64.b64encode(base64.b64decode(data["image/png"])).decode()
        yield f'<img alt="output of the cell above" src="data:image/png;base64,{png}">'
    elif "text/markdown" in data:
        yield data["text/markdown"]
    elif "text/html" in data:
        yield re.sub(r"<style.*?</style>|\n\s*", "", data["text/html"], flags=re.DOTALL)
    elif "text/plain" in data:
        yield f"```text\n{data['text/plain']}\n```"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    # the site fetches nothing from elsewhere, badges neither
    without_badges = re.sub(r"^!\[[^\]]*\]\(https://[^)]*\)\n", "", markdown, flags=re.MULTILINE)
    return with_site_links(without_badges, page.file.src_uri, config.repo_url or "")


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
