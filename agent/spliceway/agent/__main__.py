"""`python -m spliceway.agent` is `spliceway`."""

from spliceway.agent.cli import main

if __name__ == "__main__":
    main()
