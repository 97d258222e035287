from __future__ import annotations

from dpt.cli.main import main

if __name__ == "__main__":
    main()
