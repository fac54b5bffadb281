"""`python -m mimicmotion_trt` and `mimicmotion-trt` are the command line.

It is imported late: engine processes import this module, too, as the one that their server began with.
"""


def main() -> None:
    """Entry point of both."""
    try:
        from .cli import main as run
    except KeyboardInterrupt:  # Ctrl-C before anything has begun
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
