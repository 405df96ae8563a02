"""The verbs of the command, a module each. TensorFlow is imported only by verbs that need it, once their flags are right."""
