"""Tables and the HTML report, made from the result files of runs."""

from orthotune.reporting.cells import Cell, Column
from orthotune.reporting.formats import TableFormat, render
from orthotune.reporting.layout import Layout
from orthotune.reporting.table import Row, Table, build_table

__all__ = ["Cell", "Column", "Layout", "Row", "Table", "TableFormat", "build_table", "render"]
