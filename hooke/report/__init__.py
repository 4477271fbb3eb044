"""Rows of one or several runs -> one self-contained HTML page with pictures. No torch, no scripts, nothing fetched.

`read_run` computes, on plain numbers; what draws only looks at what `read_run` returned. matplotlib and jinja2 come
with the extra `hooke[report]` and are imported when a page is written, not before.
"""

from hooke.report.page import write_report
from hooke.report.read import read_run

__all__ = ["read_run", "write_report"]
