"""`python -m trainer`: settings that must be in place before TensorFlow is imported, then the program."""

import os
import sys

from trainer.environment import prepare_environment

if __name__ == "__main__":
    prepare_environment(os.environ)
    from trainer.main import main

    sys.exit(main())
