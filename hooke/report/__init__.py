"""Rows of runs or of a paper's trials -> self-contained HTML pages with pictures. No torch, scripts or network.

`read_run` computes, on plain numbers; what draws only looks at what `read_run` returned. `write_verdicts` and
`write_index` show what `hooke.claim` judged. matplotlib and jinja2 come with the extra `hooke[report]` and are imported
when a page is written, not before.
"""

from hooke.report.page import write_report
from hooke.report.read import read_run
from hooke.report.verdicts import JudgedPaper, write_index, write_pictures, write_verdicts

__all__ = ["JudgedPaper", "read_run", "write_index", "write_pictures", "write_report", "write_verdicts"]
