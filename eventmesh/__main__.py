"""`python -m eventmesh` is `eventmesh`."""

from eventmesh.cli.main import main

if __name__ == "__main__":
    main()
