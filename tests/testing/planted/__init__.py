"""Planted bugs: what simulation is for, each with the corrected program beside it.

Each module is a small program, complete with its messages and tables, and the test that its author
would write:

    broken     the services as they were written first; a few runs show what is wrong
    corrected  the same services, which pass whatever happens
    body       the test of both, given a mesh and one of the two

Each of the programs passes when nothing goes wrong: no ordinary test would find its bug.
"""
