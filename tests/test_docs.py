"""README.md and docs/: links, lengths, snippets and commands. The tables in docs/tables/ have their tests beside those
of the scripts that print them (test_sweep.py, test_threshold.py)."""

import re

import pytest
from helpers import ROOT

DOCS = sorted((ROOT / "docs").glob("**/*.md"))
PAGES = [ROOT / "README.md", *DOCS]


def blocks(text, language=r"\w*"):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.S | re.M)


def prose(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)


def anchors(text):
    """GitHub's, of a page's headings: lower case, no punctuation, a dash for a space, a number for a repeated one."""
    found = []
    for heading in re.findall(r"^#+ (.*)$", prose(text), re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
        before = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
        found.append(f"{slug}-{before}" if before else slug)
    return found


def commands(text):
    """-> (script, flags) of every `python X.py`, in blocks and in text"""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(python [^`]*)`", prose(text))
    for line in lines:
        for part in re.split(r"&&|\|", line.partition("  #")[0]):
            if match := re.match(r"\s*(?:\w+=\S+ +)*python (\S+\.py)(.*)", part):
                yield match[1], re.findall(r"(?<!\S)--[\w-]+", match[2])


def test_what_the_helpers_find():
    text = "# A / b, ε\n```bash\n# no heading\nX=1 python a.py --b-c 1 && python d.py  # --e\n```\n## A / b, ε\n"
    assert anchors(text) == ["a--b-ε", "a--b-ε-1"]
    assert list(commands(text + "or `python f.py --g`")) == [("a.py", ["--b-c"]), ("d.py", []), ("f.py", ["--g"])]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"`[^`\n]*`", "", prose(page.read_text()))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:", link):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists() and target.is_relative_to(ROOT), link
            if line := re.fullmatch(r"L(\d+)", anchor):
                assert int(line[1]) <= target.read_text().count("\n"), link
            else:
                assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lengths(page):
    text = page.read_text()
    assert text.count("\n") <= (250 if page.name == "README.md" else 300)
    wide = [line for block in blocks(text) for line in block.splitlines() if len(line) > 120]
    if page in DOCS:
        wide += [line for line in prose(text).splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not wide


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_and_commands(page):
    text = page.read_text()
    for snippet in blocks(text, "python"):
        compile(snippet, str(page), "exec")
    for script, flags in commands(text):
        assert (ROOT / script).is_file(), script
        source = (ROOT / script).read_text()
        for flag in flags:  # a field of tyro's, or read by hand
            name = flag.removeprefix("--").replace("-", "_")
            fields = rf"^ *({name}|{name.removeprefix('no_')}): |[(,] ?{name}: |\"{flag}\""
            assert flag == "--help" or re.search(fields, source, re.M), f"{script} {flag}"


def test_there_is_what_this_looks_at():
    assert len(DOCS) >= 9
    assert sum(len(list(commands(page.read_text()))) for page in DOCS) > 20
