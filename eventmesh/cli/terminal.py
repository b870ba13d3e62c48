"""What may be written to a terminal."""

from eventmesh.printable import printable as printable
from eventmesh.printable import printable_lines as printable_lines
