"""Tables in Markdown, and pages that hold them."""

import re
from collections.abc import Callable


def in_table(*columns: str, rows: list[tuple]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def with_tables(page: str, table: Callable[[str], str]) -> str:
    """``page`` with what ``table`` makes of each name between ``<!-- table NAME -->`` and ``<!-- end -->``."""
    marked = re.compile(r"(<!-- table (\S+) -->\n).*?(?=<!-- end -->)", re.DOTALL)
    return marked.sub(lambda match: match[1] + table(match[2]), page)
