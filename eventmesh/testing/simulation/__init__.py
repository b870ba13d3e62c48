"""Simulation: the same test many times, each with other faults and another order of events.

plan      what goes wrong in one run, drawn from a seed; as text, to be replayed
director  makes it go wrong, and puts it right in the end
checks    what must hold at the end of any run
search    runs seed after seed, and makes a failing plan smaller
report    tells what was tried and what was found
"""
