"""A world in one thread: virtual time, processes that can be killed at any await, and SQLite and
the clock of the machine moved into it.

    loop         the event loop: time jumps to the next timer when nothing else is ready
    process      what stands for a process: its steps can be stopped, and its connections cut
    sqlite       runs SQLite on the loop's own thread, each statement a step
    clock        the virtual time as an EventMesh `Clock`, and as `datetime.now()`
    real_world   notices threads, sockets, subprocesses and blocking sleeps, which would escape

A run in this world takes the same steps each time, and no real time beyond its computing.
"""
