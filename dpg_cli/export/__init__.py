"""Export a policy to a file for other programs, with a check that the file acts as the policy."""

from dpg_cli.export.c import check_name
from dpg_cli.export.formats import FORMATS, Format
from dpg_cli.export.verification import export

__all__ = ["FORMATS", "Format", "check_name", "export"]
