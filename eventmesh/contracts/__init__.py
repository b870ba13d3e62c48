"""Messages, their versions, and what services promise each other about them.

`message` declares a message, `versions` converts between its versions, `locks` freezes the schema
of each version in a file, `evolution` checks the versions of one message against each other, and
`fleet` checks all services together. Findings are `problem.Problem` values with a code of `rules`.
"""
