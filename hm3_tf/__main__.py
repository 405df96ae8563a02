"""`python -m hm3_tf VERB` is `hm3 VERB`."""

from hm3_tf.cli import main

if __name__ == "__main__":
    main()
