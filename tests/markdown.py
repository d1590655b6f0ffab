"""The Markdown pages as the tests read them: code blocks, inline code, sections, tables."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Page:
    """A page by its path in the repository."""

    def __init__(self, path):
        self.path = ROOT / path
        self.text = self.path.read_text(encoding="utf-8")
        self.blocks = re.findall(r"^```(\w+)\n(.*?)^```$", self.text, re.M | re.S)  # (language, text)
        self.shell = "".join(text for language, text in self.blocks if language == "bash")
        self.inline = codes(re.sub(r"^```.*?^```$", "", self.text, flags=re.M | re.S))

    def section(self, title):
        """The text below the heading `title`, up to the next heading of level two."""
        return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", self.text, re.M | re.S)[1]

    def cells(self, title):
        """The cells of a section's tables, row by row, without their headings."""
        rows = re.sub(r"^\|.*\n\| ---.*\n", "", self.section(title), flags=re.M).splitlines()
        return [row.strip("| ").split(" | ") for row in rows if row.startswith("|")]


def codes(text):
    return re.findall(r"`([^`\n]+)`", text)


PAGES = [Page("README.md"), *(Page(path) for path in sorted((ROOT / "docs").glob("*.md")))]
