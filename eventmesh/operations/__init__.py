"""What an operator asks of a running mesh: is it healthy, what waits, what is declared?

Each question is a function that measures and returns a frozen dataclass. Nothing here prints, so a
command, a document for a script and a page show the same answer. What could not be measured is part
of the answer, with the reason: a broker that is away is never shown as a broker that is empty.
"""
