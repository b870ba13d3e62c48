"""What a person would check at three in the morning, each with a verdict and what to do about it.

`measuring` asks all servers that this environment can reach. `checks` are pure: each turns a few
measured facts into verdicts, so that a rule can be read, and tested, without a server.
"""
