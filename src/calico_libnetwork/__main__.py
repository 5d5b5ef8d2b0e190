"""``python -m calico_libnetwork``."""

from calico_libnetwork.cli.main import main

if __name__ == "__main__":
    main()
