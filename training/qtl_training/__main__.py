"""``python -m qtl_training`` is ``qtl-train``, for ``torchrun -m``."""

from qtl_training.train_cli import main

if __name__ == "__main__":
    main()
